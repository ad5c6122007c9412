"""LogSettings and TraceSetting through the wire."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import logging
from typing import Any

import grpc
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference.calling import claims, failure, stub

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


async def log_settings(channel: grpc.aio.Channel, metadata: Any = (), **changes: Any) -> Any:
    request = pb.LogSettingsRequest()
    for key, value in changes.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(request.settings[key], kind, value)
    response = await stub(channel).LogSettings(request, metadata=metadata)
    return {
        key: getattr(setting, str(setting.WhichOneof("parameter_choice")))
        for key, setting in response.settings.items()
    }


async def trace_settings(
    channel: grpc.aio.Channel, model: str = "", metadata: Any = (), **changes: list[str]
) -> dict[str, list[str]]:
    request = pb.TraceSettingRequest(model_name=model)
    for key, values in changes.items():
        request.settings[key].value.extend(values)
        request.settings[key].SetInParent()
    response = await stub(channel).TraceSetting(request, metadata=metadata)
    return {key: list(setting.value) for key, setting in response.settings.items()}


async def test_what_is_logged_changes_while_the_server_runs(channel: grpc.aio.Channel) -> None:
    root, log = logging.getLogger(), logging.getLogger("servery_inference.anything")
    before = await log_settings(channel)
    assert set(before) == {
        "log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format",
    }  # fmt: skip
    assert (await log_settings(channel, log_info=False, log_verbose_level=0))["log_info"] is False
    assert not log.isEnabledFor(logging.INFO)
    assert log.isEnabledFor(logging.WARNING)
    await log_settings(channel, log_info=True, log_warning=False)
    assert log.isEnabledFor(logging.INFO)
    handled = [
        level
        for level in (logging.INFO, logging.WARNING, logging.ERROR)
        if root.handlers[0].filter(log.makeRecord("x", level, "", 0, "", (), None))
    ]
    assert handled == [logging.INFO, logging.ERROR]
    await log_settings(channel, log_verbose_level=2)
    assert log.isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"log_file": "/tmp/x"}, UNIMPLEMENTED),  # noqa: S108 refused, so never made
        ({"log_info": 1}, INVALID),
        ({"log_format": "xml"}, INVALID),
        ({"log_nothing": True}, INVALID),
    ],
)
async def test_a_log_setting_that_cannot_be(
    channel: grpc.aio.Channel, changes: dict[str, Any], code: grpc.StatusCode
) -> None:
    before = await log_settings(channel)
    assert (await failure(log_settings(channel, log_error=False, **changes))).code is code
    assert await log_settings(channel) == before


async def test_trace_settings_of_a_model_lie_over_those_of_the_server(
    channel: grpc.aio.Channel,
) -> None:
    start = await trace_settings(channel)
    assert start == {
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [""],
        "trace_mode": ["triton"],
    }
    levels = ["TIMESTAMPS", "TENSORS"]
    own = await trace_settings(channel, "simple", trace_level=levels, unknown=["x"])
    assert own == start | {"trace_level": levels}
    await trace_settings(channel, trace_level=["TENSORS"], trace_rate=["5"])
    assert (await trace_settings(channel, "simple"))["trace_level"] == levels
    assert (await trace_settings(channel, "simple"))["trace_rate"] == ["5"]
    assert (await trace_settings(channel, "dense"))["trace_level"] == ["TENSORS"]
    assert (await trace_settings(channel, "simple", trace_level=[]))["trace_level"] == ["TENSORS"]
    assert await trace_settings(channel, trace_level=[], trace_rate=[]) == start


@pytest.mark.parametrize(
    ("model", "changes", "code"),
    [
        ("", {"trace_file": ["x"]}, UNIMPLEMENTED),
        ("", {"trace_level": ["LOUD"]}, INVALID),
        ("", {"trace_rate": ["-1"]}, INVALID),
        ("", {"trace_rate": ["1", "2"]}, INVALID),
        ("nope", {"trace_rate": ["1"]}, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_trace_setting_that_cannot_be(
    channel: grpc.aio.Channel, model: str, changes: dict[str, list[str]], code: grpc.StatusCode
) -> None:
    assert (await failure(trace_settings(channel, model, **changes))).code is code


async def test_settings_of_the_server_are_its_operators(channel: grpc.aio.Channel) -> None:
    owner = claims("default", infer=["*"], read=["*"])
    for call in (
        log_settings(channel, owner),
        trace_settings(channel, metadata=owner),
        trace_settings(channel, "simple", owner, trace_rate=["1"]),
    ):
        assert (await failure(call)).code is grpc.StatusCode.PERMISSION_DENIED
    assert await trace_settings(channel, "simple", owner)

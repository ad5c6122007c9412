"""Routes of the HTTP protocol, each with the method it calls and how to translate both ways."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.http_codec import parse_object
from servery_inference.http_json import plain
from servery_inference.request import shown
from servery_rpc.errors import FieldInvalidError

Rendered = tuple[int, Any]
"""Status, and what to send as JSON; None for nothing."""

_MAX_UINT64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """What an HTTP request says."""

    params: Mapping[str, str]
    """Of the path."""

    body: bytes

    def fields(self) -> dict[str, Any]:
        """Read the body; see `parse_object`."""
        return parse_object(self.body)


@dataclass(frozen=True, slots=True)
class Call:
    """One route."""

    method: str
    path: str

    rpc: str
    """Name of the method in the contract."""

    parse: Callable[[Asked], Message]
    """Makes its message."""

    render: Callable[[Any], Rendered]


def _routes() -> list[Call]:
    routes = [
        Call("GET", "/v2/health/live", "ServerLive", _empty(pb.ServerLiveRequest), _live),
        Call("GET", "/v2/health/ready", "ServerReady", _empty(pb.ServerReadyRequest), _ready),
        Call("GET", "/v2", "ServerMetadata", _empty(pb.ServerMetadataRequest), _all),
        Call("GET", "/v2/models/stats", "ModelStatistics", _named(pb.ModelStatisticsRequest), _all),
        Call("POST", "/v2/repository/index", "RepositoryIndex", _index, _entries),
    ]
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Call("GET", model, "ModelMetadata", _named(pb.ModelMetadataRequest), _metadata),
            Call("GET", f"{model}/ready", "ModelReady", _named(pb.ModelReadyRequest), _ready),
            Call("GET", f"{model}/config", "ModelConfig", _named(pb.ModelConfigRequest), _config),
            Call(
                "GET", f"{model}/stats", "ModelStatistics", _named(pb.ModelStatisticsRequest), _all
            ),
        ]
    model = "/v2/repository/models/{model}"
    routes += [
        Call("POST", f"{model}/load", "RepositoryModelLoad", _load, _nothing),
        Call("POST", f"{model}/unload", "RepositoryModelUnload", _unload, _nothing),
    ]
    for kind, prefix, register in (
        ("system", "SystemSharedMemory", _register_system),
        ("cuda", "CudaSharedMemory", _register_cuda),
    ):
        path = f"/v2/{kind}sharedmemory"
        status = _region(getattr(pb, f"{prefix}StatusRequest"))
        unregister = _region(getattr(pb, f"{prefix}UnregisterRequest"))
        for where in (path, f"{path}/region/{{region}}"):
            routes += [
                Call("GET", f"{where}/status", f"{prefix}Status", status, _regions),
                Call("POST", f"{where}/unregister", f"{prefix}Unregister", unregister, _nothing),
            ]
        where = f"{path}/region/{{region}}/register"
        routes.append(Call("POST", where, f"{prefix}Register", register, _nothing))
    for method in ("GET", "POST"):
        routes.append(Call(method, "/v2/logging", "LogSettings", _log_settings, _log_values))
        for path in ("/v2", "/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            path = f"{path}/trace/setting"
            routes.append(Call(method, path, "TraceSetting", _trace_settings, _trace_values))
    return routes


def _empty(kind: Callable[[], Message]) -> Callable[[Asked], Message]:
    return lambda _: kind()


def _named(kind: Callable[..., Message]) -> Callable[[Asked], Message]:
    return lambda asked: kind(
        name=asked.params.get("model", ""), version=asked.params.get("version", "")
    )


def _region(kind: Callable[..., Message]) -> Callable[[Asked], Message]:
    return lambda asked: kind(name=asked.params.get("region", ""))


def _index(asked: Asked) -> Message:
    ready = asked.fields().get("ready", False)
    if not isinstance(ready, bool):
        raise FieldInvalidError("ready", ready, "be true or false")
    return pb.RepositoryIndexRequest(ready=ready)


def _load(asked: Asked) -> Message:
    request = pb.RepositoryModelLoadRequest(model_name=asked.params["model"])
    for key, value in _object(asked.fields(), "parameters").items():
        if key.startswith("file:"):
            request.parameters[key].bytes_param = _base64(value, f"parameters.{shown(key)}")
        else:
            _set_model_parameter(request.parameters[key], key, value)
    return request


def _unload(asked: Asked) -> Message:
    request = pb.RepositoryModelUnloadRequest(model_name=asked.params["model"])
    for key, value in _object(asked.fields(), "parameters").items():
        _set_model_parameter(request.parameters[key], key, value)
    return request


def _set_model_parameter(parameter: pb.ModelRepositoryParameter, key: str, value: Any) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param"}
    kind = kinds.get(type(value))
    if kind is None or (kind == "int64_param" and abs(value) >= 1 << 63):
        raise FieldInvalidError(
            f"parameters.{shown(key)}", value, "be a truth, a text, or an integer of 64 bits"
        )
    setattr(parameter, kind, value)


def _register_system(asked: Asked) -> Message:
    fields = asked.fields()
    key = fields.get("key", "")
    if not isinstance(key, str):
        raise FieldInvalidError("key", key, "be a JSON string")
    return pb.SystemSharedMemoryRegisterRequest(
        name=asked.params["region"],
        key=key,
        offset=_size(fields, "offset"),
        byte_size=_size(fields, "byte_size"),
    )


def _register_cuda(asked: Asked) -> Message:
    fields = asked.fields()
    return pb.CudaSharedMemoryRegisterRequest(
        name=asked.params["region"],
        raw_handle=_base64(_object(fields, "raw_handle").get("b64", ""), "raw_handle.b64"),
        device_id=min(_size(fields, "device_id"), (1 << 63) - 1),
        byte_size=_size(fields, "byte_size"),
    )


def _log_settings(asked: Asked) -> Message:
    request = pb.LogSettingsRequest()
    for key, value in asked.fields().items():
        setting = request.settings[key]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int) and 0 <= value < 1 << 32:
            setting.uint32_param = value
        elif isinstance(value, str):
            setting.string_param = value
        else:
            raise FieldInvalidError(shown(key), value, "be a truth, a text, or a number of 32 bits")
    return request


def _trace_settings(asked: Asked) -> Message:
    request = pb.TraceSettingRequest(model_name=asked.params.get("model", ""))
    for key, value in asked.fields().items():
        texts = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(text, str | int) for text in texts):
            raise FieldInvalidError(shown(key), value, "be null, a text, or an array of texts")
        request.settings[key].value.extend(str(text) for text in texts)
        request.settings[key].SetInParent()
    return request


def _live(response: pb.ServerLiveResponse) -> Rendered:
    return (200 if response.live else 400), None


def _ready(response: pb.ServerReadyResponse | pb.ModelReadyResponse) -> Rendered:
    return (200 if response.ready else 400), None


def _all(response: Message) -> Rendered:
    return 200, plain(response)


def _metadata(response: pb.ModelMetadataResponse) -> Rendered:
    return 200, plain(response)


def _config(response: pb.ModelConfigResponse) -> Rendered:
    return 200, plain(response.config)


def _entries(response: pb.RepositoryIndexResponse) -> Rendered:
    return 200, [
        {key: value for key, value in plain(entry).items() if value} for entry in response.models
    ]


def _regions(response: Any) -> Rendered:
    return 200, [plain(response.regions[name]) for name in sorted(response.regions)]


def _nothing(_: Message) -> Rendered:
    return 200, None


def _log_values(response: pb.LogSettingsResponse) -> Rendered:
    return 200, {
        key: getattr(setting, str(setting.WhichOneof("parameter_choice")))
        for key, setting in response.settings.items()
    }


def _trace_values(response: pb.TraceSettingResponse) -> Rendered:
    return 200, {
        key: list(setting.value) if key == "trace_level" else "".join(setting.value)
        for key, setting in response.settings.items()
    }


def _object(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = fields.get(key, {})
    if not isinstance(value, dict):
        raise FieldInvalidError(key, value, "be a JSON object")
    return value


def _size(fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key, 0)
    if type(value) is not int or not 0 <= value <= _MAX_UINT64:
        raise FieldInvalidError(key, value, "be a number of bytes")
    return value


def _base64(value: Any, field: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise FieldInvalidError(field, str(value)[:20], "be base64") from None


ROUTES: Final[Sequence[Call]] = _routes()

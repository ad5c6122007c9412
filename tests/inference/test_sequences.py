"""Sequences through a real channel: order, state, signals, places."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import answers, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory

FLAGS = "".join(
    f'control_input {{ name: "{kind.lower()}" control {{'
    f" kind: CONTROL_SEQUENCE_{kind} fp32_false_true: [0, 1] }} }}"
    for kind in ("START", "END", "READY")
)
CONFIG = f"""
max_batch_size: 4
sequence_batching {{
  %s
  max_sequence_idle_microseconds: %d
  {FLAGS}
  control_input {{
    name: "id" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }}
  }}
  state {{
    input_name: "sum_in" output_name: "sum_out" data_type: TYPE_INT32 dims: [1]
    initial_state {{ data_type: TYPE_INT32 dims: [1] zero_data: true name: "zero" }}
  }}
}}
"""
LONG_US = 60_000_000
ONE = "instance_group { count: 1 }"
OLDEST = "oldest { max_candidate_sequences: 4 }"


STATE = CONFIG[CONFIG.index("  state {") : CONFIG.rindex("}")]


def with_state(state: str) -> str:
    """The config with another state."""
    return CONFIG.replace(STATE, f"state {{ {state} }}\n")


@asynccontextmanager
async def serving(
    root: Path, strategy: str = "direct {}", idle_us: int = LONG_US, text: str = CONFIG
) -> AsyncIterator[grpc.aio.Channel]:
    graphs.store(root, "sum", graphs.running_sum())
    graphs.configure(root, "sum", text % (strategy, idle_us))
    async with serve_directory(root) as channel:
        yield channel


def request(
    sequence: int | str,
    x: int = 1,
    *,
    start: bool = False,
    end: bool = False,
    rows: int = 1,
    **more: int,
) -> pb.ModelInferRequest:
    made = infer_request("sum", {"x": np.full((rows, 1), x, "<i4")})
    if isinstance(sequence, int):
        made.parameters["sequence_id"].int64_param = sequence
    else:
        made.parameters["sequence_id"].string_param = sequence
    made.parameters["sequence_start"].bool_param = start
    made.parameters["sequence_end"].bool_param = end
    for key, value in more.items():
        made.parameters[key].int64_param = value
    return made


async def ask(channel: grpc.aio.Channel, asked: pb.ModelInferRequest) -> dict[str, Any]:
    got = answers(await stub(channel).ModelInfer(asked, timeout=20))
    return {name: value[0, 0] for name, value in got.items()}


@pytest.mark.parametrize("strategy", ["", "direct {}", OLDEST])
async def test_state_goes_from_request_to_request(tmp_path: Path, strategy: str) -> None:
    async with serving(tmp_path, strategy) as channel:

        async def whole(sequence: int, length: int) -> list[int]:
            sums = []
            for at in range(length):
                asked = request(sequence, at, start=at == 0, end=at == length - 1)
                sums.append(int((await ask(channel, asked))["y"]))
            return sums

        got = await asyncio.gather(*[whole(sequence, 6) for sequence in range(1, 20)])
        assert got == [[0, 1, 3, 6, 10, 15]] * 19
        assert await whole(1, 3) == [0, 1, 3]


async def test_requests_of_a_sequence_keep_their_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as channel:
        asked = [request(5, 10**i, start=i == 0, end=i == 5) for i in range(6)]
        stream: Any = stub(channel).ModelStreamInfer(iter(asked))
        got = [answers(each.infer_response)["y"][0, 0] async for each in stream]
        assert got == [1, 11, 111, 1111, 11111, 111111]


async def test_the_graph_is_told_about_the_sequence(tmp_path: Path) -> None:
    async with serving(tmp_path) as channel:
        first = await ask(channel, request(7, start=True))
        then = await ask(channel, request(7))
        last = await ask(channel, request(7, end=True))
    flags = ("start_out", "end_out", "ready_out", "id_out")
    assert [[each[flag] for flag in flags] for each in (first, then, last)] == [
        [1, 0, 1, 7],
        [0, 0, 1, 7],
        [0, 1, 1, 7],
    ]
    assert set(first) == {"y", *flags}


async def test_clients_see_neither_signals_nor_state(tmp_path: Path) -> None:
    async with serving(tmp_path) as channel:
        metadata = await stub(channel).ModelMetadata(pb.ModelMetadataRequest(name="sum"))
        assert [tensor.name for tensor in metadata.inputs] == ["x"]
        assert "sum_out" not in [tensor.name for tensor in metadata.outputs]


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(request(3), id="no start"),
        pytest.param(request(0, start=True), id="no id"),
        pytest.param(request("", start=True), id="an empty id"),
        pytest.param(request(3, start=True, rows=2), id="two rows"),
        pytest.param(request("a text", start=True), id="a text where the graph has a number"),
        pytest.param(request(-1, start=True), id="an id that the graph's type lacks"),
    ],
)
async def test_what_is_no_request_of_a_sequence_is_refused(
    tmp_path: Path, asked: pb.ModelInferRequest
) -> None:
    async with serving(tmp_path) as channel:
        error = await failure(stub(channel).ModelInfer(asked))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == "ERROR_REASON_INFERENCE_REQUEST_INVALID"
        assert (await ask(channel, request(9, start=True, end=True)))["y"] == 1


async def test_a_sequence_that_ended_must_start_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as channel:
        await ask(channel, request(3, start=True, end=True))
        error = await failure(stub(channel).ModelInfer(request(3)))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (await ask(channel, request(3, 5, start=True)))["y"] == 5
        assert (await ask(channel, request(3, 7, start=True)))["y"] == 7


async def test_idle_sequences_give_their_places_away(tmp_path: Path) -> None:
    async with serving(tmp_path, idle_us=200_000, text=CONFIG + ONE) as channel:
        for sequence in range(1, 5):
            await ask(channel, request(sequence, start=True))
        assert (await ask(channel, request(5, start=True)))["y"] == 1
        error = await failure(stub(channel).ModelInfer(request(1)))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_sequence_waits_for_a_place_as_long_as_it_may(tmp_path: Path) -> None:
    oldest = "oldest { max_candidate_sequences: 1 }"
    async with serving(tmp_path, oldest, text=CONFIG + ONE) as channel:
        await ask(channel, request(1, start=True))
        late = request(2, start=True, timeout=50_000)
        error = await failure(stub(channel).ModelInfer(late))
        assert error.reason == "ERROR_REASON_QUEUE_TIMEOUT"
        waiting = asyncio.ensure_future(ask(channel, request(3, 8, start=True, end=True)))
        again = asyncio.ensure_future(ask(channel, request(2, 4, start=True, end=True)))
        assert (await ask(channel, request(1, 2, end=True)))["y"] == 3
        assert (await waiting)["y"] == 8
        assert (await again)["y"] == 4


async def test_the_state_begins_as_the_file_says(tmp_path: Path) -> None:
    text = CONFIG.replace("zero_data: true", 'data_file: "five"')
    (tmp_path / "sum" / "initial_state").mkdir(parents=True)
    (tmp_path / "sum" / "initial_state" / "five").write_bytes((5).to_bytes(4, "little"))
    async with serving(tmp_path, text=text) as channel:
        assert (await ask(channel, request(1, 2, start=True)))["y"] == 7
        assert (await ask(channel, request(1, 1)))["y"] == 8
        assert (await ask(channel, request(2, 0, start=True)))["y"] == 5


NAMES = 'input_name: "sum_in" output_name: "sum_out"'
INT32 = "data_type: TYPE_INT32 dims: [1]"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (with_state(f"{NAMES} {INT32} initial_state {{ {INT32} data_file: 'no' }}"), "sum_in"),
        (with_state(f"{NAMES} {INT32} initial_state {{ {INT32} data_file: 'short' }}"), "sum_in"),
        (
            with_state(f"{NAMES} {INT32} initial_state {{ {INT32} data_file: '../config.pbtxt' }}"),
            "sum_in",
        ),
        (with_state(f"{NAMES} {INT32} initial_state {{ {INT32} }}"), "data_file"),
        (
            with_state(f"{NAMES} {INT32}" + f" initial_state {{ {INT32} zero_data: true }}" * 2),
            "2 initial states",
        ),
        (with_state(f"{NAMES} data_type: TYPE_INT64 dims: [1]"), "INT64"),
        (with_state(f"{NAMES} data_type: TYPE_INT32 dims: [2]"), "[1, 2]"),
        (
            with_state(
                f"{NAMES} {INT32} initial_state {{ data_type: TYPE_INT32 dims: [1, 1]"
                " zero_data: true }"
            ),
            "dims",
        ),
        (with_state('input_name: "sum_in" output_name: "gone"'), "gone"),
        (CONFIG.replace("state {", "iterative_sequence: true state {"), "iterative_sequence"),
    ],
)
async def test_a_state_that_cannot_be_is_refused_at_load(
    tmp_path: Path, text: str, named: str
) -> None:
    (tmp_path / "sum" / "initial_state").mkdir(parents=True)
    (tmp_path / "sum" / "initial_state" / "short").write_bytes(b"\0\0\0")
    async with serving(tmp_path, text=text) as channel:
        state, reason = (await index(channel))["sum", "1"]
        assert state == "UNAVAILABLE"
        assert named in reason


async def _batch_sizes(channel: grpc.aio.Channel) -> list[int]:
    response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="sum"))
    return [batch.batch_size for batch in response.model_stats[0].batch_stats]


@pytest.mark.parametrize(
    ("strategy", "sequences"),
    [
        pytest.param("direct { max_queue_delay_microseconds: 60000000 }", 1, id="any row will do"),
        pytest.param(
            "direct { max_queue_delay_microseconds: 60000000 minimum_slot_utilization: 0.5 }",
            2,
            id="half of the rows",
        ),
        pytest.param(
            "direct { max_queue_delay_microseconds: 60000000 minimum_slot_utilization: 0.7 }",
            3,
            id="a share that is not whole",
        ),
        pytest.param(
            "direct { max_queue_delay_microseconds: 100000 minimum_slot_utilization: 1 }",
            3,
            id="until the delay is over",
        ),
        pytest.param(
            "oldest { max_candidate_sequences: 4 preferred_batch_size: [3]"
            " max_queue_delay_microseconds: 60000000 }",
            3,
            id="a preferred size",
        ),
    ],
)
async def test_sequences_wait_for_each_other_as_the_strategy_says(
    tmp_path: Path, strategy: str, sequences: int
) -> None:
    async with serving(tmp_path, strategy, text=CONFIG + ONE) as channel:
        asked = [request(sequence, start=True) for sequence in range(1, sequences + 1)]
        await asyncio.gather(*[ask(channel, each) for each in asked])
        assert await _batch_sizes(channel) == [sequences]


@pytest.mark.parametrize(
    "strategy",
    [
        "direct { minimum_slot_utilization: 1.5 }",
        "direct { minimum_slot_utilization: -0.5 }",
        "oldest { max_candidate_sequences: 4 preferred_batch_size: [5] }",
        "oldest { max_candidate_sequences: 4 preferred_batch_size: [0] }",
    ],
)
async def test_a_strategy_out_of_range_is_refused_at_load(tmp_path: Path, strategy: str) -> None:
    async with serving(tmp_path, strategy) as channel:
        assert (await index(channel))["sum", "1"][0] == "UNAVAILABLE"

"""Several worker processes behind one address, which answer as one server would."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.rpcs import METHODS
from servery_inference.workers import relay
from tests.inference import graphs
from tests.inference.asking_http import Client
from tests.inference.calling import answers, claims, failure, index, infer_request, stub
from tests.inference.test_control import X, load, unload
from tests.inference.working import added, added_by_all, connections, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Served:
    root: Path
    channels: list[grpc.aio.Channel]
    http: Client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """Two workers for the tests that disturb nobody, with two connections to each."""
    root = tmp_path_factory.mktemp("models")
    graphs.store(root, "m", graphs.plus(1))
    flags = {"model_control_mode": "explicit", "load_model": ("m",), "shared_memory": True}
    async with (
        serve(root, **flags, http_port=0) as server,
        connections(server.address) as channels,
    ):
        assert server.http_address is not None
        yield Served(root, channels, Client(server.http_address))


async def test_every_method_of_the_contract_is_answered_here_or_relayed() -> None:
    here = {name for name in METHODS if name.startswith(("Server", "CudaSharedMemory"))}
    here |= {"ModelConfig", "ModelInfer", "ModelMetadata", "ModelReady", "ModelStreamInfer"}
    relayed = {*relay.DECIDED, *relay.KEPT, relay.SUMMED}
    assert here | relayed == set(METHODS)
    assert not here & relayed


async def test_models_are_loaded_and_unloaded_everywhere(served: Served) -> None:
    first = served.channels[0]
    graphs.store(served.root, "later", graphs.plus(5))
    await load(first, "later")
    assert await added_by_all(served.channels, "later") == {5}
    graphs.store(served.root, "later", graphs.plus(6), 2)
    await load(first, "later")
    assert await added_by_all(served.channels, "later") == {6}
    await unload(first, "later")
    for channel in served.channels:
        error = await failure(added(channel, "later"))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert (await index(channel))["later", "2"][0] in ("UNLOADING", "UNAVAILABLE")


async def test_no_call_fails_and_none_goes_back_while_versions_change(served: Served) -> None:
    graphs.store(served.root, "rolled", graphs.plus(1))
    first = served.channels[0]
    await load(first, "rolled")
    newest, last = 1, 4

    async def call_until_last(channel: grpc.aio.Channel) -> None:
        seen = 0.0
        while seen < last:
            at_least = newest
            seen = await added(channel, "rolled")
            assert seen >= at_least

    calling = [asyncio.create_task(call_until_last(channel)) for channel in served.channels]
    for number in range(2, last + 1):
        graphs.store(served.root, "rolled", graphs.plus(number), number)
        await load(first, "rolled")
        newest = number
    await asyncio.gather(*calling)


async def test_a_version_that_fails_fails_everywhere(served: Served) -> None:
    first, *others = served.channels
    graphs.store(served.root, "broken", b"no graph")
    error = await failure(load(first, "broken"))
    assert error.reason == "ERROR_REASON_MODEL_LOAD_FAILED"
    for channel in others:
        assert (await index(channel))["broken", "1"][0] == "UNAVAILABLE"
        assert (await failure(added(channel, "broken"))).code is grpc.StatusCode.NOT_FOUND


async def test_a_model_with_sequences_is_refused(served: Served) -> None:
    graphs.store(served.root, "stateful", graphs.plus(1))
    graphs.configure(served.root, "stateful", "sequence_batching { }")
    error = await failure(load(served.channels[0], "stateful"))
    assert error.reason == "ERROR_REASON_MODEL_LOAD_FAILED"
    assert "--workers 1" in error.message


async def test_settings_of_logs_and_traces_hold_everywhere(served: Served) -> None:
    first, *others = served.channels
    logs = pb.LogSettingsRequest()
    logs.settings["log_verbose_level"].uint32_param = 1
    await stub(first).LogSettings(logs)
    traces = pb.TraceSettingRequest(model_name="m")
    traces.settings["trace_rate"].value.append("7")
    await stub(first).TraceSetting(traces)
    for channel in others:
        kept_logs = await stub(channel).LogSettings(pb.LogSettingsRequest())
        assert kept_logs.settings["log_verbose_level"].uint32_param == 1
        kept = await stub(channel).TraceSetting(pb.TraceSettingRequest(model_name="m"))
        assert kept.settings["trace_rate"].value == ["7"]
    traces.settings["trace_rate"].value[:] = ["often"]
    assert (await failure(stub(first).TraceSetting(traces))).reason == "ERROR_REASON_FIELD_INVALID"


async def test_a_relayed_call_is_still_that_of_its_caller(served: Served) -> None:
    user = claims("default", infer=["*"])
    unload_it = pb.RepositoryModelUnloadRequest(model_name="m")
    for call in (
        stub(served.channels[0]).LogSettings(pb.LogSettingsRequest(), metadata=user),
        stub(served.channels[0]).RepositoryModelUnload(unload_it, metadata=user),
    ):
        assert (await failure(call)).code is grpc.StatusCode.PERMISSION_DENIED
    assert await added_by_all(served.channels) == {1}


async def test_shared_memory_is_registered_everywhere(served: Served) -> None:
    first, *others = served.channels
    with tempfile.NamedTemporaryFile(prefix="servery-", dir="/dev/shm") as memory:
        memory.write(X.tobytes())
        memory.flush()
        region = pb.SystemSharedMemoryRegisterRequest(
            name="region", key=f"/{Path(memory.name).name}", byte_size=X.nbytes
        )
        await stub(first).SystemSharedMemoryRegister(region)
        error = await failure(stub(others[0]).SystemSharedMemoryRegister(region))
        assert error.code is grpc.StatusCode.ALREADY_EXISTS
        request = infer_request("m", {"x": X})
        del request.raw_input_contents[:]
        request.inputs[0].parameters["shared_memory_region"].string_param = "region"
        request.inputs[0].parameters["shared_memory_byte_size"].int64_param = X.nbytes
        for channel in others:
            assert answers(await stub(channel).ModelInfer(request))["y"][0, 0] == 1
            listed = pb.SystemSharedMemoryStatusRequest()
            assert list((await stub(channel).SystemSharedMemoryStatus(listed)).regions) == [
                "region"
            ]
        unregister = pb.SystemSharedMemoryUnregisterRequest(name="region")
        await stub(first).SystemSharedMemoryUnregister(unregister)
        for channel in others:
            error = await failure(stub(channel).ModelInfer(request))
            assert error.code is grpc.StatusCode.NOT_FOUND


async def test_statistics_are_those_of_all_workers(served: Served) -> None:
    graphs.store(served.root, "counted", graphs.plus(1))
    await load(served.channels[0], "counted")
    for channel in served.channels:  # One by one, so that none share a run.
        assert await added(channel, "counted") == 1
    for channel in served.channels:
        request = pb.ModelStatisticsRequest(name="counted")
        [statistics] = (await stub(channel).ModelStatistics(request)).model_stats
        assert statistics.inference_stats.success.count == 4
        assert statistics.inference_count == statistics.execution_count == 4
        assert [batch.compute_infer.count for batch in statistics.batch_stats] == [4]
    unknown = stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="nope"))
    assert (await failure(unknown)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_http_is_answered_by_all_workers_too(served: Served) -> None:
    for _ in range(4):
        assert (await served.http.get("/v2/models/m"))["versions"] == ["1"]
    stats = await served.http.get("/v2/models/m/stats")
    assert stats["model_stats"][0]["version"] == "1"

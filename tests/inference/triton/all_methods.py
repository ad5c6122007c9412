"""Calls every method of a tritonclient against a running server, as an unmodified program would.

Runs in `.venv-tritonclient`, started by test_tritonclient.py: `all_methods.py KIND ADDRESS GRAPH`,
where KIND is grpc, grpc.aio, http or http.aio. Knows the models of that test.
"""

import asyncio
import importlib
import inspect
import json
import queue
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

KIND, ADDRESS = sys.argv[1:3]
GRAPH = Path(sys.argv[3]).read_bytes()
IS_GRPC = KIND.startswith("grpc")
JSON = {"as_json": True} if IS_GRPC else {}
A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)
module: Any = importlib.import_module(f"tritonclient.{KIND}")


async def done(result: Any) -> Any:
    """The result of a client, be it synchronous or not."""
    return await result if inspect.isawaitable(result) else result


async def refusal(call: Any, *arguments: Any, **more: Any) -> InferenceServerException:
    try:
        await done(call(*arguments, **more))
    except InferenceServerException as error:
        return error
    raise AssertionError(f"{call.__name__} was not refused")


def given(name: str, array: Any, datatype: str, **more: Any) -> Any:
    tensor = module.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **more)
    return tensor


def simple_inputs(**more: Any) -> list[Any]:
    return [given("a", A, "INT32", **more), given("b", B, "INT32", **more)]


async def health(client: Any) -> None:
    assert await done(client.is_server_live())
    assert await done(client.is_server_ready())
    assert await done(client.is_model_ready("simple"))
    assert not await done(client.is_model_ready("nope"))
    assert not await done(client.is_model_ready("simple", "9"))


async def descriptions(client: Any) -> None:
    server = await done(client.get_server_metadata(**JSON))
    assert server["name"] == "servery"
    assert "statistics" in server["extensions"]
    metadata = await done(client.get_model_metadata("simple", **JSON))
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 16]
    config = await done(client.get_model_config("simple", **JSON))
    config = config["config"] if IS_GRPC else config
    assert [int(size) for size in config["input"][0]["dims"]] == [16]
    assert config["backend"] == "onnxruntime"


async def inference(client: Any) -> None:
    result = await done(client.infer("simple", simple_inputs(), request_id="7"))
    assert (result.as_numpy("sum") == A + B).all()
    assert (result.as_numpy("difference") == A - B).all()
    wanted = [module.InferRequestedOutput("sum")]
    only = await done(client.infer("simple", simple_inputs(), "1", outputs=wanted))
    assert only.as_numpy("difference") is None
    texts = np.array([["héllo", ""]], object)
    echoed = await done(client.infer("texts", [given("x", texts, "BYTES")]))
    assert [t.decode() for t in echoed.as_numpy("y").ravel()] == ["héllo", ""]
    half = np.array([[0.5, -2]], np.float16)
    echoed = await done(client.infer("half", [given("x", half, "FP16")]))
    assert (echoed.as_numpy("y") == half).all()
    top = [module.InferRequestedOutput("y", class_count=1)]
    classes = await done(client.infer("half", [given("x", half, "FP16")], outputs=top))
    assert classes.as_numpy("y").tolist() == [[b"0.500000:0"]]
    more = {"priority": 1, "timeout": 10_000_000, "parameters": {"mine": 1}}
    await done(client.infer("simple", simple_inputs(), **more))


async def sequences(client: Any) -> None:
    one = np.ones((1, 1), np.int32)
    totals = []
    for start, end in ((True, False), (False, False), (False, True)):
        inputs = [given("x", one, "INT32")]
        signals = {"sequence_start": start, "sequence_end": end}
        result = await done(client.infer("sum", inputs, sequence_id=5, **signals))
        totals.append(result.as_numpy("y").item())
    assert totals == [1, 2, 3]


async def explanations(client: Any) -> None:
    x = np.array([[1, 2]], np.float32)
    why = {"parameters": {"explain": True}}
    told = await done(client.infer("told", [given("x", x, "FP32")], **why))
    assert told.as_numpy("parts").tolist() == [[10, 20]]
    assert told.as_numpy("y") is None
    wanted = [module.InferRequestedOutput("total")]
    only = await done(client.infer("told", [given("x", x, "FP32")], outputs=wanted, **why))
    assert only.as_numpy("total").tolist() == [[30]]
    error = await refusal(client.infer, "simple", simple_inputs(), **why)
    assert "400" in error.status() or "FAILED_PRECONDITION" in error.status()
    config = await done(client.get_model_config("told", **JSON))
    config = config["config"] if IS_GRPC else config
    outputs = json.loads(config["parameters"]["explanation"]["string_value"])["outputs"]
    assert [output["name"] for output in outputs] == ["parts", "total"]


async def compression(client: Any) -> None:
    names = ["compression_algorithm"]
    if not IS_GRPC:
        names = ["request_compression_algorithm", "response_compression_algorithm"]
    for algorithm in ("gzip", "deflate"):
        chosen = dict.fromkeys(names, algorithm)
        result = await done(client.infer("simple", simple_inputs(), **chosen))
        assert (result.as_numpy("sum") == A + B).all()


async def json_tensors(client: Any) -> None:
    wanted = [module.InferRequestedOutput("sum", binary_data=False)]
    inputs = simple_inputs(binary_data=False)
    result = await done(client.infer("simple", inputs, outputs=wanted))
    assert (result.as_numpy("sum") == A + B).all()
    assert result.get_output("sum")["data"][0] == 1


async def refusals(client: Any) -> None:
    error = await refusal(client.infer, "nope", simple_inputs())
    assert error.message() == "Request for unknown model: 'nope' is not found"
    assert "404" in error.status() or "NOT_FOUND" in error.status()
    error = await refusal(client.infer, "simple", simple_inputs()[:1])
    assert error.message() == (
        "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['a'], but missing"
        " required input(s) ['b']. Please provide all required input(s)."
    )
    error = await refusal(client.get_inference_statistics, "nope")
    assert error.message() == "requested model 'nope' is not available"


async def statistics(client: Any) -> None:
    await done(client.infer("simple", simple_inputs()))
    (found,) = (await done(client.get_inference_statistics("simple", **JSON)))["model_stats"]
    assert int(found["inference_stats"]["success"]["count"]) > 0
    assert int(found["inference_stats"]["queue"]["count"]) > 0
    every = await done(client.get_inference_statistics(**JSON))
    assert len(every["model_stats"]) > 1


async def repository(client: Any) -> None:
    index = await done(client.get_model_repository_index(**JSON))
    entries = index["models"] if IS_GRPC else index
    states = {entry["name"]: entry.get("state", "") for entry in entries}
    assert states["simple"] == "READY"
    await done(client.unload_model("half"))
    assert not await done(client.is_model_ready("half"))
    await done(client.load_model("half"))
    assert await done(client.is_model_ready("half"))
    files = {"file:1/model.onnx": GRAPH}
    await done(client.load_model("fresh", config='{"max_batch_size": 4}', files=files))
    assert await done(client.is_model_ready("fresh"))
    await refusal(client.load_model, "nope")
    await done(client.unload_model("nope"))


async def settings(client: Any) -> None:
    log = await done(client.update_log_settings({"log_verbose_level": 1}, **JSON))
    assert log == await done(client.get_log_settings(**JSON))
    await done(client.update_log_settings({"log_verbose_level": 0}))
    trace = {"trace_level": ["TIMESTAMPS"], "trace_rate": "5"}
    changed = await done(client.update_trace_settings("simple", trace, **JSON))
    assert changed == await done(client.get_trace_settings("simple", **JSON))
    assert changed != await done(client.get_trace_settings(**JSON))


async def shared_memory(client: Any) -> None:
    await done(client.unregister_system_shared_memory())
    await done(client.unregister_cuda_shared_memory())
    assert not await names_of(client.get_cuda_shared_memory_status(**JSON))
    await refusal(client.register_cuda_shared_memory, "r", b"aA==", 0, 8)
    region = shm.create_shared_memory_region("r", f"/servery-{KIND}", 192)
    try:
        shm.set_shared_memory_region(region, [A, B])
        await done(client.register_system_shared_memory("r", f"/servery-{KIND}", 192))
        assert await names_of(client.get_system_shared_memory_status(**JSON)) == ["r"]
        inputs = [module.InferInput(name, [1, 16], "INT32") for name in ("a", "b")]
        for position, tensor in enumerate(inputs):
            tensor.set_shared_memory("r", 64, 64 * position)
        wanted = module.InferRequestedOutput("sum")
        wanted.set_shared_memory("r", 64, 128)
        await done(client.infer("simple", inputs, outputs=[wanted]))
        written = shm.get_contents_as_numpy(region, np.int32, [1, 16], 128)
        assert (written == A + B).all()
        error = await refusal(client.register_system_shared_memory, "r", f"/servery-{KIND}", 192)
        assert "already in manager" in error.message()
        await done(client.unregister_system_shared_memory("r"))
    finally:
        shm.destroy_shared_memory_region(region)


async def names_of(call: Any) -> list[str]:
    status = await done(call)
    if IS_GRPC:
        return sorted(status.get("regions", {}))
    return [region["name"] for region in status]


def stream(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("simple", simple_inputs(), request_id="0")
    client.async_stream_infer("nope", simple_inputs(), request_id="1")
    client.async_stream_infer(
        "simple", simple_inputs(), request_id="2", enable_empty_final_response=True
    )
    got = [answers.get(timeout=20) for _ in range(3)]
    client.stop_stream()
    assert [error is None for _, error in got] == [True, False, True]
    assert [got[n][0].get_response().id for n in (0, 2)] == ["0", "2"]
    assert (got[2][0].as_numpy("sum") == A + B).all()


async def aio_stream(client: Any) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, model in enumerate(("simple", "nope", "simple")):
            inputs = simple_inputs()
            yield {"model_name": model, "inputs": inputs, "request_id": str(number)}

    got = [answer async for answer in client.stream_infer(requests())]
    assert [error is None for _, error in got] == [True, False, True]
    assert (got[2][0].as_numpy("sum") == A + B).all()


def callbacks(client: Any) -> None:
    if IS_GRPC:
        answers: queue.Queue[Any] = queue.Queue()
        client.async_infer(
            "simple", simple_inputs(), lambda result, error: answers.put((result, error))
        )
        result, error = answers.get(timeout=20)
        assert error is None
    else:
        result = client.async_infer("simple", simple_inputs()).get_result()
    assert (result.as_numpy("sum") == A + B).all()


async def main() -> None:
    client = module.InferenceServerClient(ADDRESS)
    checks = [health, descriptions, inference, sequences, explanations, compression, refusals]
    checks += [statistics, repository, settings, shared_memory]
    if not IS_GRPC:
        checks.append(json_tensors)
    for check in checks:
        await check(client)
        print("passed:", check.__name__, flush=True)  # noqa: T201 what the test reads
    if not KIND.endswith(".aio"):
        callbacks(client)
    if KIND == "grpc":
        stream(client)
    elif KIND == "grpc.aio":
        await aio_stream(client)
    await done(client.close())
    print("passed: all")  # noqa: T201 as above


asyncio.run(main())

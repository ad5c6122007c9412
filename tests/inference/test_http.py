"""The HTTP door, through real connections: the same service, in JSON and binary tensors."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.inference import graphs
from tests.inference.asking_http import INFER, LENGTH, SIMPLE, Client, serving_http, tensor
from tests.inference.calling import DTYPES, claims, raw

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """One server for all tests here; they leave its models as they were."""
    async with serving_http(tmp_path_factory.mktemp("models")) as client:
        yield client


async def test_health_and_readiness(client: Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/simple/ready"):
        assert await client.get(path) is None
    assert await client.get("/v2/models/simple/versions/1/ready") is None
    assert (await client("GET", "/v2/models/nope/ready")).status == 400
    assert (await client("GET", "/v2/models/simple/versions/9/ready")).status == 400


async def test_metadata_config_and_statistics(client: Client) -> None:
    server = await client.get("/v2")
    assert server["name"] == "servery"
    assert {"binary_tensor_data", "statistics", "system_shared_memory"} <= set(server["extensions"])
    metadata = await client.get("/v2/models/simple")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"][0] == tensor("a", "INT32", [-1, 16])
    config = await client.get("/v2/models/simple/versions/1/config")
    assert config["input"][0]["dims"] == [16]
    assert config["input"][0]["data_type"] == "TYPE_INT32"
    x = tensor("x", "FP32", [2, 784], data=[0] * 1568)
    await client.post("/v2/models/dense/infer", {"inputs": [x]})
    (stats,) = (await client.get("/v2/models/dense/stats"))["model_stats"]
    assert stats["inference_stats"]["success"]["count"] == 1
    assert stats["inference_count"] == 2
    assert len((await client.get("/v2/models/stats"))["model_stats"]) > 5


async def test_json_in_and_out(client: Client) -> None:
    answer = await client("POST", INFER, SIMPLE)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": "simple",
        "model_version": "1",
        "id": "7",
        "outputs": [
            tensor("sum", "INT32", [1, 16], data=[n + 1 for n in range(16)]),
            tensor("difference", "INT32", [1, 16], data=[n - 1 for n in range(16)]),
        ],
    }


VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT64": [-(2**63), 2**63 - 1],
    "FP16": [0.5, -65504.0],
    "FP32": [0.5, 3],
    "FP64": [1e300, -0.1],
    "BYTES": ["héllo \U0001f600", ""],
}


@pytest.mark.parametrize("datatype", [*DTYPES, "BYTES"])
async def test_every_datatype_in_json(client: Client, datatype: str) -> None:
    values = VALUES.get(datatype, [1, 2])
    body = {"inputs": [tensor("x", datatype, [1, 2], data=values)]}
    response = await client.post(f"/v2/models/identity_{datatype.lower()}/infer", body)
    assert response["outputs"] == [tensor("y", datatype, [1, 2], data=values)]


async def test_what_is_no_number_passes_through(client: Client) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[NaN,-Infinity]}]}'
    (output,) = (await client.post("/v2/models/identity_fp32/infer", body))["outputs"]
    assert np.isnan(output["data"][0])
    assert output["data"][1] == -np.inf


@pytest.mark.parametrize("datatype", [*DTYPES, "BYTES"])
async def test_every_datatype_in_binary(client: Client, datatype: str) -> None:
    if datatype == "BYTES":
        data = raw(np.array(["a", "bcd"], object))
    else:
        data = np.array([0, 1], DTYPES[datatype]).tobytes()
    sized = {"binary_data_size": len(data)}
    header = json.dumps(
        {
            "inputs": [tensor("x", datatype, [1, 2], parameters=sized)],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    path = f"/v2/models/identity_{datatype.lower()}/infer"
    answer = await client("POST", path, header + data, {LENGTH: str(len(header))})
    length = int(answer.headers[LENGTH.lower()])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert output == tensor("y", datatype, [1, 2], parameters=sized)
    assert answer.body[length:] == data
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_each_output_says_how_it_travels(client: Client) -> None:
    wanted = [{"name": "difference", "parameters": {"binary_data": False}}, {"name": "sum"}]
    body = SIMPLE | {"outputs": wanted, "parameters": {"binary_data_output": True}}
    answer = await client("POST", INFER, body)
    length = int(answer.headers[LENGTH.lower()])
    by_name = {o["name"]: o for o in json.loads(answer.body[:length])["outputs"]}
    assert by_name["sum"]["parameters"] == {"binary_data_size": 64}
    assert by_name["difference"]["data"][0] == -1
    assert np.frombuffer(answer.body[length:], "<i4")[0] == 1


async def test_classes_over_http(client: Client) -> None:
    body = {
        "inputs": [tensor("x", "FP32", [1, 2], data=[1, 2])],
        "outputs": [{"name": "y", "parameters": {"classification": 1}}],
    }
    (output,) = (await client.post("/v2/models/identity_fp32/infer", body))["outputs"]
    assert output == tensor("y", "BYTES", [1, 1], data=["2.000000:1"])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_bodies_may_be_compressed_both_ways(client: Client, encoding: str) -> None:
    pack: Any = gzip.compress if encoding == "gzip" else zlib.compress
    unpack: Any = gzip.decompress if encoding == "gzip" else zlib.decompress
    headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
    answer = await client("POST", INFER, pack(json.dumps(SIMPLE).encode()), headers)
    assert answer.headers["content-encoding"] == encoding
    assert json.loads(unpack(answer.body))["outputs"][0]["data"][0] == 1


async def test_a_repository_is_steered(client: Client) -> None:
    index = await client.post("/v2/repository/index", {"ready": True})
    assert {"name": "simple", "version": "1", "state": "READY"} in index
    await client.post("/v2/repository/models/simple/unload")
    assert (await client("GET", "/v2/models/simple/ready")).status == 400
    await client.post("/v2/repository/models/simple/load")
    graph = base64.b64encode(graphs.plus(3)).decode()
    files = {"config": '{"max_batch_size": 4}', "file:1/model.onnx": graph}
    await client.post("/v2/repository/models/fresh/load", {"parameters": files})
    body = {"inputs": [tensor("x", "FP32", [1, 2], data=[1, 2])]}
    (output,) = (await client.post("/v2/models/fresh/infer", body))["outputs"]
    assert output["data"] == [4, 5]
    bad = {"parameters": {"file:1/model.onnx": "§"}}
    assert (await client("POST", "/v2/repository/models/fresh/load", bad)).status == 400
    unknown = await client("POST", "/v2/repository/models/nope/load")
    assert unknown.status == 500


async def test_shared_memory_is_registered(client: Client) -> None:
    path = "/v2/systemsharedmemory"
    assert await client.get(f"{path}/status") == []
    bad = {"key": "/no-such-object", "offset": 0, "byte_size": 64}
    assert (await client("POST", f"{path}/region/r/register", bad)).status == 500
    assert (await client("POST", f"{path}/region/r/register", {"byte_size": -1})).status == 400
    assert (await client("GET", f"{path}/region/r/status")).status == 404
    await client.post(f"{path}/region/r/unregister")
    await client.post("/v2/cudasharedmemory/unregister")
    assert await client.get("/v2/cudasharedmemory/status") == []
    handle = {"raw_handle": {"b64": base64.b64encode(b"h" * 64).decode()}, "byte_size": 8}
    answer = await client("POST", "/v2/cudasharedmemory/region/r/register", handle)
    assert answer.status == 501


async def test_settings_are_read_and_changed(client: Client) -> None:
    assert (await client.get("/v2/logging"))["log_info"] in (True, False)
    assert (await client.post("/v2/logging", {"log_verbose_level": 1}))["log_verbose_level"] == 1
    assert (await client("POST", "/v2/logging", {"log_info": "yes"})).status == 400
    assert (await client("POST", "/v2/logging", {"log_file": "x"})).status == 501
    assert (await client.get("/v2/trace/setting"))["trace_level"] == ["OFF"]
    path = "/v2/models/simple/trace/setting"
    changes = {"trace_level": ["TIMESTAMPS"], "trace_rate": 5}
    assert (await client.post(path, changes))["trace_rate"] == "5"
    assert (await client.post(path, {"trace_level": None}))["trace_level"] == ["OFF"]


async def test_timing_on_request(client: Client) -> None:
    answer = await client("POST", INFER, SIMPLE, {"servery-timing": "1"})
    assert answer.headers["servery-timing"].startswith("queue;us=")


@pytest.mark.parametrize(
    ("model", "values", "shape"),
    [
        pytest.param("identity_fp32", np.arange(2, dtype="<f4"), [1, 2], id="one row"),
        pytest.param("free", np.arange(10, dtype="<f4"), [1, 2, 5], id="a free axis"),
        pytest.param("free", np.zeros(0, "<f4"), [1, 2, 0], id="nothing along a free axis"),
        pytest.param("fixed", np.arange(6, dtype="<f4"), [2, 3], id="no rows"),
    ],
)
async def test_a_body_may_be_nothing_but_the_input(
    client: Client, model: str, values: Any, shape: list[int]
) -> None:
    path = f"/v2/models/{model}/infer"
    answer = await client("POST", path, values.tobytes(), {LENGTH: "0"})
    length = int(answer.headers[LENGTH.lower()])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert (output["shape"], output["datatype"]) == (shape, "FP32")
    assert answer.body[length:] == values.tobytes()


async def test_a_body_may_be_nothing_but_a_text(client: Client) -> None:
    answer = await client("POST", "/v2/models/text/infer", "für".encode(), {LENGTH: "0"})
    length = int(answer.headers[LENGTH.lower()])
    assert json.loads(answer.body[:length])["outputs"][0]["shape"] == [1, 1]
    assert answer.body[length:] == b"\x04\0\0\0" + "für".encode()


async def test_trace_settings_of_a_version_are_those_of_its_model(client: Client) -> None:
    of_model = await client.get("/v2/models/simple/trace/setting")
    assert await client.get("/v2/models/simple/versions/1/trace/setting") == of_model


async def test_a_call_through_the_gateway_tells_what_it_used(client: Client) -> None:
    answer = await client("POST", INFER, SIMPLE, dict(claims("default", infer=["*"])))
    used = dict(part.split("=") for part in answer.headers["servery-usage"].split(";"))
    assert (used["version"], used["rows"]) == ("1", "1")
    assert int(used["compute_ns"]) > 0
    direct = await client("POST", INFER, SIMPLE, {})
    assert "servery-usage" not in direct.headers

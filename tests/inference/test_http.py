"""The HTTP door, through real connections: the same service, in JSON and binary tensors."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import base64
import contextlib
import gzip
import http.client
import json
import socket
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference import graphs
from tests.inference.calling import DTYPES, claims, raw

pytestmark = pytest.mark.asyncio(loop_scope="module")

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> str:
        return str(self.json()["error"])


@dataclass(frozen=True)
class Client:
    address: str

    async def __call__(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await asyncio.to_thread(self._call, method, path, data, headers or {})

    async def get(self, path: str) -> Any:
        answer = await self("GET", path)
        assert answer.status == 200, answer.body
        return answer.json() if answer.body else None

    async def post(self, path: str, body: Any = b"") -> Any:
        answer = await self("POST", path, body)
        assert answer.status == 200, answer.body
        return answer.json() if answer.body else None

    def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            sent = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, sent, response.read())
        finally:
            connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """One server for all tests here; they leave its models as they were."""
    root = tmp_path_factory.mktemp("models")
    for datatype in (*DTYPES, "BYTES"):
        graphs.store(root, f"identity_{datatype.lower()}", graphs.identity(datatype))
    graphs.store(root, "simple", graphs.add_and_subtract())
    graphs.store(root, "dense", graphs.dense())
    graphs.store(root, "text", graphs.identity("BYTES", ("batch", 1)))
    graphs.store(root, "free", graphs.identity("FP32", ("batch", 2, "width")))
    graphs.store(root, "freer", graphs.identity("FP32", ("batch", "height", "width")))
    graphs.store(root, "fixed", graphs.identity("FP32", (2, 3)))
    settings = InferenceSettings(
        model_repository=root,
        drain_s=0,
        http_port=0,
        model_control_mode="explicit",
        load_model=("*",),
        shared_memory=True,
        max_message_bytes=1 << 20,
    )
    async with serving_inference(settings) as server:
        await asyncio.wait_for(server.ready.wait(), 20)
        assert server.http_address is not None
        yield Client(server.http_address)


def tensor(name: str, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


SIMPLE = {
    "id": "7",
    "inputs": [
        tensor("a", "INT32", [1, 16], data=list(range(16))),
        tensor("b", "INT32", [1, 16], data=[[1] * 16]),
    ],
}
INFER = "/v2/models/simple/infer"


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


def changed(**fields: Any) -> dict[str, Any]:
    return SIMPLE | fields


def first(**fields: Any) -> dict[str, Any]:
    """SIMPLE with a spoiled first input."""
    inputs: Any = SIMPLE["inputs"]
    return SIMPLE | {"inputs": [inputs[0] | fields, inputs[1]]}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"[" * 100_000, id="nested too deep"),
        pytest.param(b"\xff\xfe", id="no Unicode"),
        pytest.param(b'{"id": "\\ud800"}', id="half a character"),
        pytest.param([1], id="an array"),
        pytest.param(changed(id=5), id="id"),
        pytest.param(changed(inputs={}), id="inputs"),
        pytest.param(changed(inputs=[3]), id="an input"),
        pytest.param(changed(inputs=[]), id="no input"),
        pytest.param(changed(parameters={"timeout": "x"}), id="kind of a parameter"),
        pytest.param(changed(parameters={"triton_x": 1}), id="reserved parameter"),
        pytest.param(changed(parameters={"x": None}), id="null"),
        pytest.param(changed(parameters={"x": 2**70}), id="a large parameter"),
        pytest.param(changed(parameters={"binary_data_output": 1}), id="no truth"),
        pytest.param(changed(outputs=[{"name": "nope"}]), id="unknown output"),
        pytest.param(changed(outputs=[{"name": "sum", "parameters": 5}]), id="parameters"),
        pytest.param(first(datatype="INT33"), id="unknown datatype"),
        pytest.param(first(datatype="FP32"), id="another datatype"),
        pytest.param(first(shape=[1, 15]), id="another shape"),
        pytest.param(first(shape=[1, 2**70]), id="an endless shape"),
        pytest.param(first(shape=["1", 16]), id="a shape of texts"),
        pytest.param(first(data=[1] * 15), id="too few elements"),
        pytest.param(first(data=[[1], [1, 2]]), id="ragged rows"),
        pytest.param(first(data=[1.5] * 16), id="fractions"),
        pytest.param(first(data=[2**31] * 16), id="beyond the range"),
        pytest.param(first(data=[2**70] * 16), id="beyond 64 bits"),
        pytest.param(first(data=["1"] * 16), id="texts"),
        pytest.param(first(data=[None] * 16), id="nulls"),
        pytest.param(first(data=[True] * 16), id="truths"),
        pytest.param(first(data="1"), id="no array"),
        pytest.param(first(parameters={"binary_data_size": 64}), id="binary that is not there"),
        pytest.param(first(parameters={"binary_data_size": -1}), id="negative size"),
        pytest.param(first(parameters={"binary_data_size": "64"}), id="size of another kind"),
        pytest.param(first(parameters={"shared_memory_region": "r"}), id="region without size"),
    ],
)
async def test_bad_bodies_are_refused(client: Client, body: Any) -> None:
    answer = await client("POST", INFER, body)
    assert answer.status == 400, answer.body
    assert answer.json()["reason"].startswith("ERROR_REASON_")
    assert "/" not in answer.error()


async def test_errors_have_the_codes_and_texts_of_grpc(client: Client) -> None:
    unknown = await client("POST", "/v2/models/nope/infer", SIMPLE)
    assert (unknown.status, unknown.error()) == (
        404,
        "Request for unknown model: 'nope' is not found",
    )
    assert (await client("GET", "/v2/models/simple/versions/9/config")).status == 404
    assert (await client("GET", "/v2/models/simple/versions/x")).status == 400
    assert (await client("GET", "/v2/models/nope/stats")).status == 400
    assert (await client("GET", "/v2/nowhere")).status == 404
    assert "error" in (await client("DELETE", "/v2")).json()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        pytest.param({LENGTH: "-1"}, b"{}", 400, id="negative length"),
        pytest.param({LENGTH: "3"}, b"{}", 400, id="length beyond the body"),
        pytest.param({LENGTH: "2"}, b"{}xyz", 400, id="bytes that belong to nothing"),
        pytest.param({"Content-Encoding": "gzip"}, b"{}", 400, id="not compressed"),
        pytest.param({"Content-Encoding": "gzip"}, gzip.compress(b"{}")[:-9], 400, id="cut off"),
        pytest.param({"Content-Encoding": "br"}, b"{}", 501, id="another compression"),
        pytest.param({}, b" " * ((1 << 20) + 1), 413, id="too large"),
        pytest.param({"Content-Encoding": "gzip"}, gzip.compress(b" " * (1 << 21)), 413, id="bomb"),
        pytest.param({"Origin": "http://evil.example"}, b"{}", 403, id="a web page"),
    ],
)
async def test_bad_headers_and_sizes_are_refused(
    client: Client, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = await client("POST", INFER, body, headers)
    assert answer.status == status, answer.body
    assert answer.error()
    assert (await client.post(INFER, SIMPLE))["id"] == "7"


async def test_callers_may_do_what_their_claims_say(client: Client) -> None:
    headers = dict(claims("default", infer=["dense"]))
    assert (await client("POST", INFER, SIMPLE, headers)).status == 403
    assert (await client("POST", "/v2/logging", {}, headers)).status == 403
    gateway = {"x-servery-model": "simple"}
    assert (await client("POST", INFER, SIMPLE, gateway)).status == 200
    assert (await client("GET", "/v2/models/dense", b"", gateway)).status == 403


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


async def test_a_client_that_hangs_up_harms_nobody(client: Client) -> None:
    host, port = client.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{"
        connection.sendall(head.encode())
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
    assert (await client.post(INFER, SIMPLE))["id"] == "7"


async def test_a_body_in_a_hundred_thousand_pieces_is_a_body(client: Client) -> None:
    body = json.dumps(SIMPLE).encode()
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * 100_000 + body) + b"0\r\n\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    answer = await exchange(client, f"{head}Connection: close\r\n\r\n".encode() + pieces)
    assert answer.startswith(b"HTTP/1.1 200")


async def test_headers_without_an_end_are_cut_off(client: Client) -> None:
    head = f"POST {INFER} HTTP/1.1\r\n".encode()
    answer = await exchange(client, head + b"x: y\r\n" * 200_000)
    assert answer.startswith(b"HTTP/1.1 431") or answer == b""
    assert (await client.post(INFER, SIMPLE))["id"] == "7"


async def exchange(client: Client, data: bytes) -> bytes:
    """Send bytes; return what comes back until the connection ends."""
    host, port = client.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(writer.drain(), 20)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        except ConnectionError:
            return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


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


@pytest.mark.parametrize(
    ("model", "num_bytes", "status"),
    [
        pytest.param("simple", 4, 400, id="two inputs"),
        pytest.param("freer", 4, 400, id="two free axes"),
        pytest.param("identity_bytes", 4, 400, id="two texts"),
        pytest.param("identity_fp32", 7, 400, id="too few bytes"),
        pytest.param("identity_fp32", 16, 400, id="two rows"),
        pytest.param("free", 9, 400, id="part of an element"),
        pytest.param("nope", 4, 404, id="no model"),
    ],
)
async def test_a_body_that_does_not_say_what_it_is_is_refused(
    client: Client, model: str, num_bytes: int, status: int
) -> None:
    answer = await client("POST", f"/v2/models/{model}/infer", bytes(num_bytes), {LENGTH: "0"})
    assert answer.status == status
    assert answer.error()


async def test_a_model_that_the_caller_may_not_use_is_not_told_apart(client: Client) -> None:
    headers = {LENGTH: "0", **dict(claims("default", infer=["other"]))}
    for model in ("simple", "nope"):
        answer = await client("POST", f"/v2/models/{model}/infer", b"", headers)
        assert answer.status == 403


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

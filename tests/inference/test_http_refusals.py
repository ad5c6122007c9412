"""What the HTTP door refuses, and whom a bad client harms: nobody."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.inference.asking_http import INFER, LENGTH, SIMPLE, Client, serving_http
from tests.inference.calling import claims

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """One server for all tests here; they leave its models as they were."""
    async with serving_http(tmp_path_factory.mktemp("models")) as client:
        yield client


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

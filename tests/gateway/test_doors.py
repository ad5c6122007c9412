"""The doors beside gRPC: browsers, REST, health and published keys, through the real Envoy."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from servery.gateway.v1 import usage_pb2
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.control_plane import control_plane
from tests.gateway.asking import ask
from tests.gateway.rest import RestBackend, rest_backend
from tests.gateway.test_usage import counted, query, usage

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

ORIGIN = "https://app.example.org"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Doors:
    stack: Stack
    rest: RestBackend

    async def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Ask over HTTP/1.1."""
        return await ask(self.stack, method, path, body, **headers)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def doors(module_directory: Path) -> AsyncIterator[Doors]:
    from tests.gateway.conftest import running_stack, settings_for

    settings = settings_for(
        module_directory,
        inference_http=f"unix:{module_directory}/http.sock",
        browser_origins=(ORIGIN,),
    )
    with rest_backend(module_directory / "http.sock") as rest:
        async with control_plane(settings), running_stack(settings, module_directory) as stack:
            yield Doors(stack, rest)


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
async def test_a_browser_calls_over_grpc_web(doors: Doors, text: bool) -> None:
    token = await doors.stack.token(infer=["digits"])
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    answers = {}
    for model in ("digits", "cats"):
        body = framed(oip.ModelInferRequest(model_name=model).SerializeToString())
        answers[model] = await doors.ask(
            "POST",
            INFER,
            base64.b64encode(body) if text else body,
            content_type=kind,
            accept=kind,
            origin=ORIGIN,
            authorization=f"Bearer {token}",
        )
        headers = answers[model][1]
        assert headers["access-control-allow-origin"] == ORIGIN
        assert "grpc-status" in headers["access-control-expose-headers"]
    code, _, answer = answers["digits"]
    assert code == 200
    if text:
        # Frames are padded one by one.
        quads = (answer[i : i + 4] for i in range(0, len(answer), 4))
        answer = b"".join(base64.b64decode(quad) for quad in quads)
    assert b"grpc-status:0" in answer
    code, headers, _ = answers["cats"]
    assert code == 403
    assert headers["grpc-status"] == "7"


@pytest.mark.parametrize(("origin", "allowed"), [(ORIGIN, True), ("https://evil.example", False)])
async def test_a_page_may_call_from_the_origins_that_were_named(
    doors: Doors, origin: str, allowed: bool
) -> None:
    code, headers, _ = await doors.ask(
        "OPTIONS",
        INFER,
        origin=origin,
        access_control_request_method="POST",
        access_control_request_headers="authorization,x-grpc-web",
    )
    assert (headers.get("access-control-allow-origin") == origin) is allowed
    if allowed:
        assert code == 200
        assert "authorization" in headers["access-control-allow-headers"]


async def test_a_balancer_sees_health_without_a_token(doors: Doors) -> None:
    code, _, _ = await doors.ask("GET", "/healthz")
    assert code == 200


async def test_the_keys_that_verify_tokens_are_published(doors: Doors) -> None:
    code, headers, body = await doors.ask("GET", "/.well-known/jwks.json")
    assert code == 200
    assert headers["content-type"] == "application/json"
    (key,) = json.loads(body)["keys"]
    assert key["kid"] == doors.stack.signing_key.jwk["kid"]
    assert "d" not in key


@pytest.mark.parametrize(
    ("permissions", "method", "path", "status"),
    [
        pytest.param({"infer": ["dig*"]}, "POST", "/v2/models/digits/infer", 200, id="infer"),
        pytest.param(
            {"infer": ["dig*"]}, "POST", "/v2/models/digits/versions/3/infer", 200, id="a version"
        ),
        pytest.param({"infer": ["dig*"]}, "POST", "/v2/models/cats/infer", 403, id="another model"),
        pytest.param({"read": ["*"]}, "POST", "/v2/models/digits/infer", 403, id="read no infer"),
        pytest.param({"infer": ["*"]}, "POST", "/v2/models/a.digits/infer", 403, id="a tenant's"),
        pytest.param({"read": ["*"]}, "GET", "/v2/models/digits", 200, id="metadata"),
        pytest.param({"read": ["*"]}, "GET", "/v2/models/digits/ready", 200, id="ready"),
        pytest.param({"train": ["*"]}, "GET", "/v2/models/digits", 403, id="train reads not"),
        pytest.param({"train": ["*"]}, "GET", "/v2/health/ready", 200, id="any token"),
        pytest.param({"train": ["*"]}, "POST", "/v2/repository/index", 200, id="index"),
        pytest.param(
            {"admin": ["*"]}, "POST", "/v2/repository/models/digits/load", 403, id="no load"
        ),
        pytest.param({"admin": ["*"]}, "GET", "/v2/systemsharedmemory/status", 403, id="no memory"),
        pytest.param({"infer": ["*"]}, "GET", "/v2/models/digits/infer", 403, id="a wrong method"),
        pytest.param({"infer": ["*"]}, "POST", "/v2/models/Digits/infer", 400, id="no model"),
        pytest.param({"infer": ["*"]}, "POST", "/v2/models/digits/infer?x", 403, id="a query"),
        pytest.param(
            {"infer": ["digits"]}, "POST", "/v2/models/digits/../cats/infer", 403, id="dots"
        ),
        pytest.param({"infer": ["*"]}, "POST", "/v2x/models/digits/infer", 403, id="no v2"),
        pytest.param(None, "POST", "/v2/models/digits/infer", 401, id="no token"),
    ],
)
async def test_over_rest_the_path_names_the_model(
    doors: Doors,
    permissions: dict[str, list[str]] | None,
    method: str,
    path: str,
    status: int,
) -> None:
    doors.rest.paths.clear()
    headers: dict[str, Any] = {}
    if permissions is not None:
        headers["authorization"] = f"Bearer {await doors.stack.token(**permissions)}"
    code, _, body = await doors.ask(method, path, **headers)
    assert code == status, body
    assert doors.rest.paths == ([path] if status == 200 else [])
    if status != 200 and path.startswith("/v2/"):
        assert json.loads(body)["error"]
    if "/models/digits" in path and status == 200:
        assert doors.rest.headers["x-servery-model"] == "digits"
        assert "x-servery-claims" in doors.rest.headers


async def test_binary_tensors_pass_over_rest_as_they_are_and_are_counted(
    doors: Doors, build: Builder
) -> None:
    token = await doors.stack.token("rest", infer=["*"])
    body = json.dumps({"inputs": []}).encode() + bytes(range(256)) * 20_000
    code, _, _ = await doors.ask(
        "POST",
        "/v2/models/rest.digits/infer",
        body,
        authorization=f"Bearer {token}",
        inference_header_content_length="14",
    )
    assert code == 200
    assert doors.rest.body == body
    assert doors.rest.headers["inference-header-content-length"] == "14"
    await build.until(counted(doors.stack, "rest", 1))
    (row,) = await usage(
        doors.stack,
        query("tenants/rest", usage_pb2.USAGE_DIMENSION_MODEL, usage_pb2.USAGE_DIMENSION_CODE),
    )
    assert (row.model, row.code) == ("tenants/rest/models/digits", 0)
    assert row.request_bytes == len(body)


@pytest.mark.parametrize("door", ["grpc-web", "grpc-web-text", "rest"])
async def test_what_inference_says_a_call_used_counts_through_every_door(
    doors: Doors, build: Builder, door: str
) -> None:
    tenant = f"used-{door}"
    token = await doors.stack.token(tenant, infer=["*"])
    told = ("servery-usage", "version=3;rows=8;compute_ns=1000")
    message = framed(oip.ModelInferRequest(model_name=f"{tenant}.digits").SerializeToString())
    path, body, headers = INFER, message, {"content_type": f"application/{door}"}
    if door == "grpc-web-text":
        body = base64.b64encode(message)
    elif door == "rest":
        path, body, headers = f"/v2/models/{tenant}.digits/infer", b"{}", {}
    doors.stack.backends["inference"].trailing = (told,)
    doors.rest.answer_headers = (told,)
    try:
        code, _, _ = await doors.ask("POST", path, body, authorization=f"Bearer {token}", **headers)
    finally:
        doors.stack.backends["inference"].trailing = ()
        doors.rest.answer_headers = ()
    assert code == 200
    await build.until(counted(doors.stack, tenant, 1))
    (row,) = await usage(doors.stack, query(f"tenants/{tenant}", usage_pb2.USAGE_DIMENSION_VERSION))
    assert (row.version, row.rows, row.compute_time.ToNanoseconds()) == (3, 8, 1000)

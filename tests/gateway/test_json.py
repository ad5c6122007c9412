"""JSON over HTTP for our own services: the same answers by the same rules, through Envoy."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest

from servery.gateway.v1 import usage_pb2
from tests.gateway.asking import ask
from tests.gateway.test_usage import counted, query, usage

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "/v1/tenants/default/models/digits"
GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"


async def call(
    stack: Stack, method: str, path: str, token: str | None = None, body: Any = None
) -> tuple[int, Any]:
    """Call with JSON; return HTTP status and the answer."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    data = b"" if body is None else json.dumps(body).encode()
    code, got, answer = await ask(stack, method, path, data, **headers)
    assert got["content-type"] == "application/json"
    return code, json.loads(answer)


def reason(status: Any) -> str:
    """The reason of a google.rpc.Status; a second one would be a mistake."""
    (found,) = [d for d in status["details"] if d["@type"].endswith("google.rpc.ErrorInfo")]
    assert found["domain"] == "servery"
    return str(found["reason"])


async def test_a_tenant_a_key_and_a_token_by_nothing_but_json(stack: Stack) -> None:
    admin = await stack.token(admin=["*"])
    code, answer = await call(stack, "POST", "/v1/tenants", admin, {"name": "tenants/jason"})
    assert (code, answer["tenant"]["name"]) == (HTTPStatus.OK, "tenants/jason")
    key = {"permissions": [{"verb": "VERB_READ", "models": ["dig*"]}]}
    _, created = await call(stack, "POST", "/v1/tenants/jason/apiKeys", admin, key)
    _, exchanged = await call(
        stack, "POST", "/v1/apiKeys:exchange", body={"apiKey": created["secret"]}
    )
    assert exchanged["tenant"] == "tenants/jason"
    code, _ = await call(stack, "GET", MODEL, exchanged["accessToken"])
    assert code == HTTPStatus.OK
    revoke = f"/v1/{created['apiKey']['name']}:revoke"
    _, revoked = await call(stack, "POST", revoke, admin)
    assert revoked["apiKey"]["revokeTime"]
    code, status = await call(stack, "GET", MODEL, exchanged["accessToken"])
    assert (code, reason(status)) == (
        HTTPStatus.UNAUTHORIZED,
        "ERROR_REASON_API_KEY_INVALID",
    )


async def test_a_name_in_the_path_is_a_field_of_the_message(stack: Stack) -> None:
    admin = await stack.token(admin=["*"])
    path = "/v1/tenants/default/quota"
    _, stored = await call(stack, "PUT", path, admin, {"requestsPerSecond": 1000})
    assert stored["quota"] == {"name": "tenants/default", "requestsPerSecond": 1000}
    assert (await call(stack, "GET", path, admin))[1]["quota"] == stored["quota"]
    await call(stack, "PUT", path, admin, {})


async def test_a_watch_answers_one_line_for_each_message(stack: Stack) -> None:
    token = await stack.token(read=["*"])
    path = "/v1/tenants/default/trainingJobs/1:watch"
    code, _, answer = await ask(stack, "GET", path, authorization=f"Bearer {token}")
    assert (code, answer) == (HTTPStatus.OK, b"{}\n")


@pytest.mark.parametrize(
    ("verb", "method", "path", "code"),
    [
        pytest.param("read", "GET", MODEL, HTTPStatus.OK, id="read may read"),
        pytest.param("infer", "GET", MODEL, HTTPStatus.FORBIDDEN, id="infer may not"),
        pytest.param("read", "GET", "/v1/tenants", HTTPStatus.FORBIDDEN, id="nor read administer"),
        pytest.param(
            "read", "DELETE", f"{MODEL}/aliases/a", HTTPStatus.FORBIDDEN, id="nor promote"
        ),
        pytest.param(None, "GET", MODEL, HTTPStatus.UNAUTHORIZED, id="without a token"),
    ],
)
async def test_who_may_call_is_decided_as_over_grpc(
    stack: Stack, verb: str | None, method: str, path: str, code: int
) -> None:
    stack.backends["registry"].metadata.clear()
    token = await stack.token(**{verb: ["*"]}) if verb else None
    assert (await call(stack, method, path, token))[0] == code
    assert bool(stack.backends["registry"].metadata) is (code == HTTPStatus.OK)


async def test_a_tenant_in_the_path_that_is_not_ones_own_is_refused(stack: Stack) -> None:
    await stack.new_key("jason-neighbour", admin=["*"])
    token = await stack.token("jason-own", admin=["*"])
    own, foreign = (f"/v1/tenants/jason-{name}/apiKeys" for name in ("own", "neighbour"))
    assert (await call(stack, "GET", own, token))[0] == HTTPStatus.OK
    code, status = await call(stack, "GET", foreign, token)
    assert (code, reason(status)) == (HTTPStatus.FORBIDDEN, "ERROR_REASON_PERMISSION_DENIED")


async def test_headers_of_the_platform_cannot_be_sent(stack: Stack) -> None:
    token = await stack.token(read=["*"])
    await ask(
        stack,
        "GET",
        MODEL,
        authorization=f"Bearer {token}",
        x_servery_claims="e30",
        x_envoy_original_path="/v1/x",
    )
    seen = stack.backends["registry"].metadata[GET_MODEL]
    assert seen["x-servery-claims"] != "e30"
    assert seen["x-envoy-original-path"] == MODEL


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "expected"),
    [
        pytest.param(
            "GET", "/v1/tenants/nobody", b"", 404, "ERROR_REASON_TENANT_NOT_FOUND", id="no tenant"
        ),
        pytest.param(
            "GET", "/v1/tenants/NO", b"", 400, "ERROR_REASON_FIELD_INVALID", id="no such name"
        ),
        pytest.param("GET", "/v1/nothing", b"", 404, "ERROR_REASON_UNSUPPORTED", id="no path"),
        pytest.param("PATCH", MODEL, b"", 404, "ERROR_REASON_UNSUPPORTED", id="no method"),
        pytest.param("GET", f"{MODEL}?page=1", b"", 400, None, id="no such parameter"),
        pytest.param("POST", "/v1/tenants", b'{"name":', 400, None, id="no JSON"),
        pytest.param("POST", "/v1/tenants", b'{"name": 5}', 400, None, id="a wrong type"),
        pytest.param("POST", "/v1/tenants", b"[" * 5000, 400, None, id="nested without end"),
    ],
)
async def test_a_refusal_is_a_status_in_json(
    stack: Stack, method: str, path: str, body: bytes, code: int, expected: str | None
) -> None:
    token = await stack.token(admin=["*"], read=["*"])
    found, headers, answer = await ask(stack, method, path, body, authorization=f"Bearer {token}")
    assert (found, headers["content-type"]) == (code, "application/json"), answer
    status = json.loads(answer)
    assert status["message"]
    if expected:
        assert reason(status) == expected
    else:
        assert status["code"] == 3  # Envoy's own words, before anything of ours is asked.


async def test_a_server_that_is_away_is_said_so_in_json(stack: Stack, build: Builder) -> None:
    token = await stack.token(read=["*"])
    await stack.stop_backend("trainer")
    try:
        code, status = await call(stack, "GET", "/v1/tenants/default/datasets", token)
        assert (code, status["code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, 14)
    finally:
        await stack.start_backend("trainer")
        await build.until(stack.is_healthy)


async def test_what_was_refused_over_json_is_counted_by_its_status(
    stack: Stack, build: Builder
) -> None:
    token = await stack.token("jason-counted", read=["*"])
    await call(stack, "GET", "/v1/tenants/jason-counted/models", token)
    await call(stack, "GET", "/v1/tenants", token)
    await call(stack, "GET", "/v1/nothing", token)
    await build.until(counted(stack, "jason-counted", 3))
    asked = query("tenants/jason-counted", usage_pb2.USAGE_DIMENSION_CODE)
    assert [(row.code, row.requests) for row in await usage(stack, asked)] == [
        (0, 1),
        (5, 1),
        (7, 1),
    ]

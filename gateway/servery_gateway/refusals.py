"""How Envoy words what it refuses by itself: as our own servers would. Pure."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status

from servery_gateway.extensions import EXTENSIONS, typed
from servery_gateway.keys import ApiKeyInvalidError
from servery_gateway.limits import BUDGET_POLICY, EXCHANGE_PATH, REVOKED_POLICY, SPENT_POLICY
from servery_gateway.transcoding import JSON_PREFIX, ORIGINAL_PATH
from servery_rpc.errors import QuotaExceededError, ServeryError, to_status

_AN_HOUR_MS: Final = 3_600_000
_CODES: Final = {
    400: code_pb2.INVALID_ARGUMENT,
    404: code_pb2.NOT_FOUND,
    408: code_pb2.DEADLINE_EXCEEDED,
    413: code_pb2.INVALID_ARGUMENT,
    500: code_pb2.INTERNAL,
    502: code_pb2.UNAVAILABLE,
    503: code_pb2.UNAVAILABLE,
    504: code_pb2.DEADLINE_EXCEEDED,
}
"""What Envoy may answer a JSON request for reasons of its own."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An answer of Envoy itself."""

    expression: str
    """Selects it, in CEL."""

    http_status: int

    status: Status
    """What it says over gRPC. `%LOCAL_REPLY_BODY%` in its message stands for Envoy's own text."""


def refusals() -> list[Mapping[str, Any]]:
    """Return the mappers of Envoy's own answers, the first that fits counts."""
    known = [
        variant
        for refusal in _refusals()
        for variant in (_over_rest(refusal), _over_json(refusal), _over_grpc(refusal))
    ]
    return known + [
        _over_json(
            _Refusal(
                f"response.code == {http_status} && response.code_details != 'lua_response'",
                http_status,
                Status(code=code, message="%LOCAL_REPLY_BODY%"),
            )
        )
        for http_status, code in _CODES.items()
    ]


def _refusals() -> list[_Refusal]:
    limited = "response.code_details.startsWith('local_rate_limited')"
    return [
        _bad_token(),
        _worded(_denied_by(REVOKED_POLICY), 401, ApiKeyInvalidError()),
        _quota(
            _denied_by(SPENT_POLICY),
            "requests_per_day",
            _AN_HOUR_MS,
            "the calls that this tenant or key may make today are used up; they count anew from"
            " midnight in UTC, or ask an administrator for a higher quota",
        ),
        _quota(
            _denied_by(BUDGET_POLICY),
            "budget",
            _AN_HOUR_MS,
            "the budget of this tenant or key for this month is spent; it begins anew on the first"
            " of the month in UTC, or ask an administrator for a higher budget",
        ),
        _quota(
            f"{limited} && request.path == '{EXCHANGE_PATH}'",
            "key_exchanges",
            10_000,
            "too many keys were exchanged from this address; keep a token until it expires",
        ),
        _quota(
            limited,
            "requests_per_second",
            1_000,
            "this tenant or key calls more often than its quota allows; call slower, or ask an"
            " administrator for a higher quota",
        ),
    ]


def _denied_by(policy: str) -> str:
    return f"response.code_details == 'rbac_access_denied_matched_policy[{policy}]'"


def _bad_token() -> _Refusal:
    """How a missing or unacceptable token is answered; Envoy alone says 403 for some of them."""
    return _Refusal(
        "response.code_details.startsWith('jwt_authn_access_denied')",
        401,
        Status(
            code=code_pb2.UNAUTHENTICATED,
            message="%LOCAL_REPLY_BODY%; send the metadata `authorization: Bearer"
            " {token}` with a token from servery.gateway.v1.AuthService/ExchangeApiKey",
        ),
    )


def _quota(expression: str, limit: str, retry_after_ms: int, what: str) -> _Refusal:
    return _worded(expression, 429, QuotaExceededError(limit, retry_after_ms, what))


def _worded(expression: str, http_status: int, error: ServeryError) -> _Refusal:
    """Answer as a server that raises `error` would."""
    return _Refusal(expression, http_status, to_status(error))


def _over_grpc(refusal: _Refusal) -> Mapping[str, Any]:
    status = refusal.status
    mapper: dict[str, Any] = {
        "filter": _when(refusal.expression),
        "status_code": refusal.http_status,
        "body_format_override": {"text_format_source": {"inline_string": status.message}},
    }
    if status.details:
        packed = status.SerializeToString(deterministic=True)
        headers = {
            "grpc-status": str(status.code),
            "grpc-status-details-bin": base64.b64encode(packed).decode(),
        }
        mapper["headers_to_add"] = [
            {
                "header": {"key": key, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for key, value in headers.items()
        ]
    return mapper


def _over_rest(refusal: _Refusal) -> Mapping[str, Any]:
    """Word the same refusal as the REST form of the inference protocol does."""
    return {
        "filter": _when(f"{refusal.expression} && request.path.startsWith('/v2')"),
        "status_code": refusal.http_status,
        "body_format_override": {"json_format": {"error": refusal.status.message}},
    }


def _over_json(refusal: _Refusal) -> Mapping[str, Any]:
    """Word the same refusal as the JSON form of our own contracts does: a google.rpc.Status."""
    asked = f"('{ORIGINAL_PATH}' in request.headers || request.path.startsWith('{JSON_PREFIX}'))"
    return {
        "filter": _when(f"{refusal.expression} && {asked}"),
        "status_code": refusal.http_status,
        "body_format_override": {"json_format": MessageToDict(refusal.status)},
    }


def _when(expression: str) -> Mapping[str, Any]:
    """Select the answers for which a CEL expression holds."""
    config = {
        "@type": f"{EXTENSIONS}.access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": expression,
    }
    return {"extension_filter": typed("envoy.access_loggers.extension_filters.cel", config)}

"""How Envoy words what it refuses by itself: as our own servers would. Pure."""

import base64
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo

from servery_gateway.extensions import EXTENSIONS, typed
from servery_gateway.keys import ApiKeyInvalidError
from servery_gateway.limits import EXCHANGE_PATH, REVOKED_POLICY, SPENT_POLICY
from servery_gateway.quota import Limit, QuotaExceededError
from servery_rpc.errors import ServeryError, to_status

_AN_HOUR_MS: Final = 3_600_000


def refusals() -> list[Mapping[str, Any]]:
    """Return the mappers of Envoy's own answers, the first that fits counts."""
    return [variant for mapper in _grpc_refusals() for variant in (_over_rest(mapper), mapper)]


def _grpc_refusals() -> list[dict[str, Any]]:
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


def _bad_token() -> dict[str, Any]:
    """How a missing or unacceptable token is answered; Envoy alone says 403 for some of them."""
    return {
        "filter": _when("response.code_details.startsWith('jwt_authn_access_denied')"),
        "status_code": 401,
        "body_format_override": {
            "text_format_source": {
                "inline_string": "%LOCAL_REPLY_BODY%; send the metadata `authorization: Bearer"
                " {token}` with a token from servery.gateway.v1.AuthService/ExchangeApiKey"
            }
        },
    }


def _quota(expression: str, limit: Limit, retry_after_ms: int, what: str) -> dict[str, Any]:
    delay = Duration()
    delay.FromMilliseconds(retry_after_ms)
    violation = QuotaFailure.Violation(subject=limit, description=what)
    return _worded(
        expression,
        429,
        QuotaExceededError(limit, retry_after_ms, what),
        RetryInfo(retry_delay=delay),
        QuotaFailure(violations=[violation]),
    )


def _worded(
    expression: str, http_status: int, error: ServeryError, *details: Any
) -> dict[str, Any]:
    """Answer as a server that raises `error` would, with more details."""
    status = to_status(error)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    headers = {
        "grpc-status": str(status.code),
        "grpc-status-details-bin": base64.b64encode(
            status.SerializeToString(deterministic=True)
        ).decode(),
    }
    return {
        "filter": _when(expression),
        "status_code": http_status,
        "body_format_override": {"text_format_source": {"inline_string": status.message}},
        "headers_to_add": [
            {
                "header": {"key": key, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for key, value in headers.items()
        ],
    }


def _over_rest(mapper: Mapping[str, Any]) -> Mapping[str, Any]:
    """Word the same refusal as the REST form of the inference protocol does."""
    expression = mapper["filter"]["extension_filter"]["typed_config"]["expression"]
    text = mapper["body_format_override"]["text_format_source"]["inline_string"]
    return {
        "filter": _when(f"{expression} && request.path.startsWith('/v2')"),
        "status_code": mapper["status_code"],
        "body_format_override": {"json_format": {"error": text}},
    }


def _when(expression: str) -> Mapping[str, Any]:
    """Select the answers for which a CEL expression holds."""
    config = {
        "@type": f"{EXTENSIONS}.access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": expression,
    }
    return {"extension_filter": typed("envoy.access_loggers.extension_filters.cel", config)}

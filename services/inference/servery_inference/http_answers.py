"""What every HTTP route does around its work: refuse pages of others, answer failures, trace."""

import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from google.rpc import code_pb2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery_rpc.errors import CODES, PermissionDeniedError, ServeryError, UploadTooLargeError
from servery_rpc.identity import CLAIMS_HEADER
from servery_rpc.interceptor import REQUEST_ID_HEADER, request_id

if TYPE_CHECKING:
    from servery_rpc.telemetry import Telemetry

Handle = Callable[[Request], Awaitable[Response]]

_STATUSES: Final[Mapping[int, int]] = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.ABORTED: 409,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.INTERNAL: 500,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}

log = logging.getLogger(__name__)


def guarded(handle: Handle) -> Handle:
    """Return `handle` with an answer for whatever goes wrong inside."""

    async def answer(request: Request) -> Response:
        given = request.headers.get(REQUEST_ID_HEADER, "")[:100]
        request_id.set(given or f"{random.getrandbits(64):016x}")
        try:
            _refuse_strange_pages(request)
            return await handle(request)
        except ServeryError as error:
            log.info("%s: %s", request.url.path, error)
            return _refusal(error)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:
            log.exception("unhandled error in %s", request.url.path)
            text = f"internal error; the operator finds it in the log by {request_id.get()}"
            return _error(500, text)

    return answer


def traced(telemetry: "Telemetry | None", method: str, path: str, handle: Handle) -> Handle:
    """Return `handle` with a span around it, unless machines call it again and again."""
    if telemetry is None or path.startswith("/v2/health"):
        return handle

    async def answer(request: Request) -> Response:
        if not telemetry.records(request.headers.items()):
            return await handle(request)
        attributes = {"http.request.method": method, "http.route": path}
        with telemetry.span(f"{method} {path}", request.headers.items(), attributes) as span:
            response = await handle(request)
            span.set_attribute("http.response.status_code", response.status_code)
            return response

    return answer


def _refuse_strange_pages(request: Request) -> None:
    """Keep web pages of others from using a browser on this machine as a way in.

    Raises:
        PermissionDeniedError: A page asks, and the gateway did not let it through.
    """
    if "origin" in request.headers and CLAIMS_HEADER not in request.headers:
        raise PermissionDeniedError("infer", "web pages, on a port without the gateway")


def _refusal(error: ServeryError) -> Response:
    headers = {}
    if error.retry_after_ms is not None:
        headers["retry-after"] = str(-(-error.retry_after_ms // 1000))
    status = 413 if isinstance(error, UploadTooLargeError) else _STATUSES[CODES[error.reason]]
    return _error(status, str(error), headers, reason=ErrorReason.Name(error.reason))


def _error(
    status: int, text: str, headers: Mapping[str, str] | None = None, **more: str
) -> Response:
    content = json.dumps({"error": text, **more}, ensure_ascii=False).encode()
    return Response(content, status, headers, media_type="application/json")


async def no_such_route(_: Request, error: Exception) -> Response:
    """Answer a request to nothing."""
    return _error(
        getattr(error, "status_code", 404), "there is no such route, or not by this method"
    )

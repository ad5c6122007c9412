"""The Open Inference Protocol over HTTP: every route calls the method that gRPC calls.

It knows paths, headers and JSON. What a request means, and who may make it, is decided behind.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from servery_inference.access import (
    TIMING_HEADER,
    asks,
    authorize,
    authorize_infer,
    timing_text,
)
from servery_inference.endpoint import InferEndpoint
from servery_inference.http_answers import Handle, guarded, no_such_route, traced
from servery_inference.http_codec import HttpRequest, decode, encode
from servery_inference.http_compression import accepted, compress, decompress
from servery_inference.http_routes import ROUTES, Asked, Call
from servery_inference.in_flight import InFlight
from servery_inference.metering import USAGE_HEADER, Tally, is_metered
from servery_inference.raw_request import raw_request
from servery_inference.repository import Repository
from servery_inference.rpcs import Handlers
from servery_rpc.errors import FieldInvalidError, UploadTooLargeError

if TYPE_CHECKING:
    from servery_rpc.telemetry import Telemetry

LENGTH_HEADER: Final = "inference-header-content-length"
MAX_BODY_BYTES: Final = (1 << 31) - 1
"""Largest body where the settings name no limit, as it comes in."""

MAX_BLOWN_UP_BYTES: Final = 1 << 28
"""Largest body that was compressed, as it comes out."""

_INFER_PATHS: Final = (
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}/infer",
)
_INLINE_BYTES: Final = 1 << 16


class HttpContext:
    """One HTTP request as the methods of the service see a call."""

    def __init__(self, request: Request) -> None:
        self._metadata = [
            (key.decode("latin-1"), value.decode("latin-1")) for key, value in request.headers.raw
        ]

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return the headers."""
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: Any, /) -> None:
        """Do nothing: what callers ask for behind an answer, `infer` puts into its headers."""

    def time_remaining(self) -> float | None:
        """Return None: HTTP has no deadlines."""
        return None


def http_app(
    handlers: Handlers,
    endpoint: InferEndpoint,
    repository: Repository,
    in_flight: InFlight,
    max_body_bytes: int,
    telemetry: "Telemetry | None" = None,
) -> Starlette:
    """Make the application.

    Args:
        handlers: The methods of the contract.
        endpoint: Answers inference requests.
        repository: The models, for requests that leave to them what is in their bytes.
        in_flight: Counts what is being answered.
        max_body_bytes: Largest body; -1 for what the protocol allows.
        telemetry: Traces the requests; None to trace none.
    """
    limit = max_body_bytes if max_body_bytes >= 0 else MAX_BODY_BYTES
    door = _Door(handlers, endpoint, repository, in_flight, limit)
    ways: list[tuple[str, str, Handle]] = [
        (route.method, route.path, partial(door.call, route)) for route in ROUTES
    ]
    ways += [("POST", path, door.infer) for path in _INFER_PATHS]
    routes = [
        Route(path, traced(telemetry, method, path, guarded(handle)), methods=[method])
        for method, path, handle in ways
    ]
    return Starlette(routes=routes, exception_handlers={404: no_such_route, 405: no_such_route})


class _Door:
    def __init__(
        self,
        handlers: Handlers,
        endpoint: InferEndpoint,
        repository: Repository,
        in_flight: InFlight,
        max_body_bytes: int,
    ) -> None:
        self._handlers = handlers
        self._endpoint = endpoint
        self._repository = repository
        self._in_flight = in_flight
        self._max_body_bytes = max_body_bytes

    async def call(self, route: Call, request: Request) -> Response:
        """Answer by a method of the contract."""
        body = await self._body(request) if route.method == "POST" else b""
        message = route.parse(Asked(request.path_params, body))
        response: Message = await self._handlers[route.rpc](message, HttpContext(request))
        status, content = route.render(response)
        return Response(
            b"" if content is None else json.dumps(content, ensure_ascii=False).encode(),
            status,
            media_type="application/json",
        )

    async def infer(self, request: Request) -> Response:
        """Answer an inference request."""
        context = HttpContext(request)
        asked = await self._asked(request, context)
        admitted = await self._endpoint.admit(asked.request, partial(authorize_infer, context))
        asked = HttpRequest(admitted, asked.binary, asked.binary_default)
        with self._in_flight.place(context):
            answer = await self._endpoint.infer(admitted)
        size = sum(output.value.nbytes for output in answer.outputs)
        rendered = await _where_fits(size, encode, asked, answer)
        headers: dict[str, str] = {}
        media_type = "application/json"
        if rendered.json_bytes is not None:
            headers[LENGTH_HEADER] = str(rendered.json_bytes)
            media_type = "application/octet-stream"
        if is_metered(context):
            tally = Tally()
            tally.add(answer)
            headers[USAGE_HEADER] = str(tally)
        if asks(context, TIMING_HEADER):
            headers[TIMING_HEADER] = timing_text(answer.timing)
        content = rendered.body
        if encoding := accepted(request.headers.get("accept-encoding", "")):
            headers |= {"content-encoding": encoding, "vary": "accept-encoding"}
            content = await _where_fits(len(content), compress, content, encoding)
        return Response(content, headers=headers, media_type=media_type)

    async def _asked(self, request: Request, context: HttpContext) -> HttpRequest:
        body, length = await self._body(request), _json_length(request)
        model, version = request.path_params["model"], request.path_params.get("version", "")
        if length == 0:
            authorize(context, ("infer",), model)
            return raw_request(
                model, version, body, self._repository.find(model, version).signature
            )
        asked: HttpRequest = await _where_fits(len(body), decode, model, version, body, length)
        return asked

    async def _body(self, request: Request) -> bytes:
        limit = self._max_body_bytes
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise UploadTooLargeError(limit)
            chunks.append(chunk)
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if not encoding:
            return body
        most = min(limit, MAX_BLOWN_UP_BYTES)
        return await asyncio.to_thread(decompress, body, encoding, most)


def _json_length(request: Request) -> int | None:
    text = request.headers.get(LENGTH_HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise FieldInvalidError("Inference-Header-Content-Length", text, "be a number of bytes")
    return int(text)


async def _where_fits(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Do short work here, long work on another thread."""
    if size <= _INLINE_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)

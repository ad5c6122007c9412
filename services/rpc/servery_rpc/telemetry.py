"""Traces by OpenTelemetry: a span for every call, sent to a collector over OTLP.

Imported only by processes that are told where the collector is: it costs 9 MB of memory. Headers,
certificates and what describes the process come from the standard variables `OTEL_…`.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import inspect
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    format_trace_id,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from servery_rpc.interceptor import code_of, request_id, trace_id
from servery_rpc.settings import ServerSettings

_METHOD: Final = re.compile(r"/([^/]+)/([^/]+)")
_QUIET: Final = ("/grpc.health.v1.", "/grpc.reflection.")
"""Methods without spans: machines call them again and again."""

_TRACEPARENT: Final = re.compile(
    r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?", re.ASCII
)
_CALLER_HEADERS: Final = ("traceparent", "tracestate")
_EXPORT_S: Final = 5.0
_FAULTS_OF_THE_SERVER: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""By the semantic conventions of OpenTelemetry; other codes are the caller's doing."""


class Telemetry:
    """Makes the spans of one process.

    Args:
        tracer: Where they are begun; others may begin spans of their own there.
        ratio: Share of the calls to record whose caller has not decided.
    """

    def __init__(self, tracer: Tracer, ratio: float) -> None:
        self.tracer = tracer
        self._ratio = ratio
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    @asynccontextmanager
    async def exporting(cls, settings: ServerSettings) -> AsyncIterator[Telemetry]:
        """Send spans to `settings.otlp_endpoint` for the length of the block, and the last behind.

        A collector that is away costs spans and nothing else.
        """
        provider = await asyncio.to_thread(_provider, settings)
        try:
            yield cls(provider.get_tracer("servery"), settings.trace_ratio)
        finally:
            await asyncio.to_thread(provider.shutdown)

    def traced(self, call: Callable[..., Any], method: str) -> Callable[..., Any]:
        """Return the handler `call` of `method` with a span around each call that is recorded.

        The span is current inside, and the child of the one that the caller names by W3C's
        `traceparent`.
        """
        if method.startswith(_QUIET):
            return call
        return (
            self._stream(call, method)
            if inspect.isasyncgenfunction(call)
            else self._unary(call, method)
        )

    def records(self, headers: Iterable[tuple[str, str | bytes]]) -> bool:
        """Decide, once, whether a call is recorded: its caller says so, else the ratio does."""
        for key, value in headers:
            if key == "traceparent" and (told := _TRACEPARENT.fullmatch(str(value))):
                trace_id.set(told[1])
                return bool(int(told[2], 16) & TraceFlags.SAMPLED)
        return random.random() < self._ratio  # noqa: S311  keeps no secret

    @contextmanager
    def span(
        self, name: str, headers: Iterable[tuple[str, str | bytes]], attributes: dict[str, str]
    ) -> Iterator[Span]:
        """Be inside of a span for a call that came with `headers` and is recorded."""
        carrier = {key: str(value) for key, value in headers if key in _CALLER_HEADERS}
        parent = self._propagator.extract(carrier, Context())
        with self.tracer.start_as_current_span(
            name,
            parent,
            SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            trace_id.set(format_trace_id(span.get_span_context().trace_id))
            try:
                yield span
            finally:  # Only now is it known.
                span.set_attribute("servery.request_id", request_id.get())

    @contextmanager
    def _call(self, method: str, context: Any) -> Iterator[None]:
        service, name = _parts(method)
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        headers = context.invocation_metadata() or ()
        with self.span(f"{service}/{name}", headers, attributes) as span:
            code = grpc.StatusCode.CANCELLED.name  # What is left when a handler did not end.
            try:
                yield
                code = code_of(context)
            except grpc.aio.AbortError:
                code = code_of(context)
                raise
            finally:
                status = grpc.StatusCode[code]
                span.set_attribute("rpc.grpc.status_code", int(status.value[0]))
                if status in _FAULTS_OF_THE_SERVER:
                    span.set_status(Status(StatusCode.ERROR, status.name))

    def _unary(self, call: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def traced(request: Any, context: Any) -> Any:
            if not self.records(context.invocation_metadata() or ()):
                return await call(request, context)
            with self._call(method, context):
                return await call(request, context)

        return traced

    def _stream(self, call: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def traced(request: Any, context: Any) -> AsyncIterator[Any]:
            recorded = self.records(context.invocation_metadata() or ())
            with self._call(method, context) if recorded else nullcontext():
                async for response in call(request, context):
                    yield response

        return traced


def _provider(settings: ServerSettings) -> TracerProvider:
    process = type(settings).__name__.removesuffix("Settings").lower()
    told = OTELResourceDetector().detect().attributes
    described = {"service.name": f"servery-{process}", **told}
    provider = TracerProvider(
        ParentBased(ALWAYS_ON),  # What is not to be recorded does not get here.
        Resource.create(described),
        shutdown_on_exit=False,
    )
    endpoint = settings.otlp_endpoint or ""
    exporter = OTLPSpanExporter(endpoint, endpoint.startswith("http://"), timeout=_EXPORT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _parts(method: str) -> tuple[str, str]:
    match = _METHOD.fullmatch(method)
    return (match[1], match[2]) if match else ("", method)

"""Spans inside a model: one for each request, and one for each run, which links to its requests.

Only for processes that export traces; others neither import this nor pay for it. Durations are in
microseconds.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnxruntime as ort
from opentelemetry.trace import Link, Span, Status, StatusCode, Tracer, get_current_span
from opentelemetry.trace.propagation import set_span_in_context

from servery_inference.engine import RunEndedError
from servery_inference.execution import Execution, Run
from servery_inference.request import Array, Terms, Timing
from servery_inference.runner import Result, Runner
from servery_inference.trace_settings import TraceSettings

_NS_PER_US: Final = 1000


class Tracing:
    """Begins the spans of all models.

    Args:
        tracer: Where.
        settings: Which requests get them, of those whose call is recorded.
    """

    def __init__(self, tracer: Tracer, settings: TraceSettings) -> None:
        self._tracer = tracer
        self._settings = settings

    def of(self, model: str, version: int, graph: str) -> "ModelTracing":
        """Return the part for one graph of one version of a model."""
        return ModelTracing(self._tracer, self._settings, model, version, graph)


class TracedFeed(dict[str, Array]):
    """The tensors of a request, and the span that its run shall link to."""

    __slots__ = ("arrival_ns", "span")

    def __init__(self, feed: Mapping[str, Array], span: Span) -> None:
        super().__init__(feed)
        self.span = span
        self.arrival_ns = time.perf_counter_ns()


class ModelTracing:
    """Begins the spans of one graph of one version of a model; see `Tracing.of`."""

    def __init__(
        self, tracer: Tracer, settings: TraceSettings, model: str, version: int, graph: str
    ) -> None:
        self.tracer = tracer
        self.attributes: dict[str, Any] = {
            "servery.model.name": model,
            "servery.model.version": version,
            "servery.model.graph": graph,
        }
        self._settings = settings
        self._model = model

    def runner(self, runner: Runner) -> "TracedRunner":
        """Return a runner that puts a span around each request to `runner`."""
        return TracedRunner(runner, self)

    def execution(self, *parts: Any) -> "TracedExecution":
        """Make an execution, of the parts that `Execution` takes, that makes a span of each run."""
        return TracedExecution(self, *parts)

    def wants_next(self) -> bool:
        """Tell whether the request that this code runs for gets spans."""
        return get_current_span().is_recording() and self._settings.take(self._model)

    def record_run(
        self, feeds: Sequence[TracedFeed], num_requests: int, run: Run | None, began_ns: int
    ) -> Span:
        """Begin the span of a run that is over: below that of its first request, with links to all.

        Args:
            feeds: Of the requests that get spans; at least one.
            num_requests: How many share the run.
            run: What it gave; None if it gave nothing.
            began_ns: When its thread took it up, by `time.perf_counter_ns`.
        """
        waits = [(began_ns - feed.arrival_ns) / _NS_PER_US for feed in feeds]
        attributes: dict[str, Any] = {
            **self.attributes,
            "servery.batch.requests": num_requests,
            "servery.queue_us": max(waits),
        }
        if run is not None:
            attributes["servery.compute_input_us"] = run.compute_input_ns / _NS_PER_US
            attributes["servery.compute_infer_us"] = run.compute_infer_ns / _NS_PER_US
        span = self.tracer.start_span(
            "batch",
            set_span_in_context(feeds[0].span),
            attributes=attributes,
            links=[
                Link(feed.span.get_span_context(), {"servery.queue_us": wait})
                for feed, wait in zip(feeds, waits, strict=True)
            ],
            start_time=_unix_ns(began_ns),
        )
        for feed in feeds:
            feed.span.add_link(span.get_span_context())
        return span


class TracedRunner:
    """Puts a span around each request to another runner."""

    def __init__(self, runner: Runner, tracing: ModelTracing) -> None:
        self._runner = runner
        self._tracing = tracing

    async def run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        terms: Terms,
        deadline: float | None,
    ) -> Result:
        """See `Runner`."""
        tracing = self._tracing
        if not tracing.wants_next():
            return await self._runner.run(feed, names, rows, size, terms, deadline)
        attributes = {**tracing.attributes, "servery.rows": rows}
        with tracing.tracer.start_as_current_span(
            "infer", attributes=attributes, record_exception=False
        ) as span:
            traced = TracedFeed(feed, span)
            result = await self._runner.run(traced, names, rows, size, terms, deadline)
            span.set_attributes(_stages(result.timing))
        return result


class TracedExecution(Execution):
    """Makes a span of each run with a request of a `TracedRunner` in it."""

    def __init__(self, tracing: ModelTracing, *parts: Any) -> None:
        super().__init__(*parts)
        self._tracing = tracing

    def _run(
        self, feeds: Sequence[Mapping[str, Array]], names: Sequence[str], options: ort.RunOptions
    ) -> Run:
        traced = [feed for feed in feeds if isinstance(feed, TracedFeed)]
        if not traced:
            return super()._run(feeds, names, options)
        began_ns = time.perf_counter_ns()
        run = None
        problem = ""
        try:
            run = super()._run(feeds, names, options)
        except RunEndedError:
            problem = "ended, for it took too long for where it ran, or nobody waits any more"
            raise
        except Exception as error:
            problem = str(error)
            raise
        finally:
            span = self._tracing.record_run(traced, len(feeds), run, began_ns)
            if problem:
                span.set_status(Status(StatusCode.ERROR, problem))
            span.end()
        return run


def _stages(timing: Timing) -> dict[str, float]:
    return {
        "servery.queue_us": timing.queue_ns / _NS_PER_US,
        "servery.compute_input_us": timing.compute_input_ns / _NS_PER_US,
        "servery.compute_infer_us": timing.compute_infer_ns / _NS_PER_US,
        "servery.compute_output_us": timing.compute_output_ns / _NS_PER_US,
    }


def _unix_ns(moment_ns: int) -> int:
    """Turn a moment by `time.perf_counter_ns` into one since the Unix epoch."""
    return time.time_ns() - (time.perf_counter_ns() - moment_ns)

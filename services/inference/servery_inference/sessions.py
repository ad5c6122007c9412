"""Sessions of ONNX Runtime for one graph: on the provider that was asked for and no other.

A graph that takes long to optimise is kept optimised (see `graph_cache`), so that it is not when it
is loaded again. Everything blocks, for seconds if graphs are large.
"""

import contextlib
import logging
import time
import warnings
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from servery_inference.bound_session import BoundSession, ShapesOpenError
from servery_inference.engine import Engine, LoadFailedError, explained
from servery_inference.graph_cache import GraphCache, processor
from servery_inference.options import NO_OPTIMISATION, PROVIDERS, ModelOptions, Provider

MAX_KEPT_BYTES: Final = 64 << 20
"""With all files beside it. Larger graphs are weights above all, which load no sooner."""

_PAYS: Final = 0.9
_LOAD_S: Final = "load_s"
_LOG_FATAL: Final = 4
_FAULTS: Final = ort.capi.onnxruntime_pybind11_state
_LOAD_FAULTS: Final = (
    _FAULTS.EPFail,
    _FAULTS.EngineError,
    _FAULTS.Fail,
    _FAULTS.InvalidArgument,
    _FAULTS.InvalidGraph,
    _FAULTS.InvalidProtobuf,
    _FAULTS.ModelLoaded,
    _FAULTS.NoModel,
    _FAULTS.NoSuchFile,
    _FAULTS.NotImplemented,
    _FAULTS.RuntimeException,
    RuntimeError,
    ValueError,
)

log = logging.getLogger(__name__)


def require_provider(provider: Provider) -> None:
    """Find out, before any model is loaded, whether this build can use `provider` at all.

    Raises:
        RuntimeError: It was built without it.
    """
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise RuntimeError(
            f"execution_provider is {provider!r}, but the installed ONNX Runtime was built without"
            f" {PROVIDERS[provider]}; install servery[inference-gpu] in an environment of its own,"
            " or use cpu"
        )
    if provider == "cuda":
        ort.preload_dlls()


def open_engine(graph: Path, options: ModelOptions, cache: GraphCache | None = None) -> Engine:
    """Load `graph`, with external data only from beside it.

    Args:
        graph: The file.
        options: How to run it.
        cache: Where optimised graphs are kept; None to optimise every time.

    Raises:
        LoadFailedError: It is no graph that this provider runs.
    """
    return Engine(
        [
            _bound(_open_session(graph, options, device, cache), options, device)
            for device in options.device_ids
        ]
    )


def _bound(session: ort.InferenceSession, options: ModelOptions, device_id: int) -> Any:
    """Return the session with fixed places for its tensors, where that is wanted and can be."""
    if not options.is_bound and not options.recorded_sizes:
        return session
    try:
        return BoundSession(session, options.provider, device_id, options.recorded_sizes)
    except ShapesOpenError as error:
        if options.recorded_sizes:
            raise LoadFailedError(
                f"optimization.cuda.graphs needs tensors of known shapes, but {error}"
            ) from None
        log.info("tensors get places at every run, for %s", error)
        return session


def _open_session(
    graph: Path, options: ModelOptions, device_id: int, cache: GraphCache | None
) -> ort.InferenceSession:
    # What TensorRT compiles cannot be kept this way, and what CUDA makes of a graph is not tried.
    if cache is not None and options.provider == "cpu" and options.graph_level != NO_OPTIMISATION:
        with contextlib.suppress(OSError):
            if sum(p.stat().st_size for p in graph.parent.rglob("*")) <= MAX_KEPT_BYTES:
                return _open_known(graph, options, device_id, cache)
    return _made(graph, options, device_id, options.session_options())


def _open_known(
    graph: Path, options: ModelOptions, device_id: int, cache: GraphCache
) -> ort.InferenceSession:
    started = time.perf_counter()
    key = cache.key(graph, "optimised", options, processor())
    entry = cache.read(key)
    if entry is not None and entry.graph is not None:
        # One with external data is not whole without the files beside it.
        with contextlib.suppress(LoadFailedError):
            optimised = options.session_options(is_optimised=True)
            session = _made(entry.graph, options, device_id, optimised)
            before_s = entry.facts.get(_LOAD_S)
            if isinstance(before_s, float) and time.perf_counter() - started < before_s * _PAYS:
                return session
        cache.drop(key)
        with cache.draft(key) as draft:
            draft.keep({})  # It is known not to pay.
    began = time.perf_counter()
    session = _made(graph, options, device_id, options.session_options())
    load_s = time.perf_counter() - began
    if entry is None and load_s >= cache.min_load_s:
        with contextlib.suppress(OSError, LoadFailedError), cache.draft(key) as draft:
            saving = options.session_options()
            saving.optimized_model_filepath = str(draft.graph)
            _made(graph, options, device_id, saving)  # Once more: `load_s` is that of a load alone.
            draft.keep({_LOAD_S: load_s})
    return session


def _made(
    graph: Path | bytes, options: ModelOptions, device_id: int, session_options: ort.SessionOptions
) -> ort.InferenceSession:
    session_options.log_severity_level = _LOG_FATAL  # What goes wrong arrives as an exception.
    providers = options.providers(device_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # The check below is stricter.
            session = ort.InferenceSession(graph, session_options, providers=providers)
    except _LOAD_FAULTS as error:
        raise LoadFailedError(f"ONNX Runtime cannot load the graph: {explained(error)}") from None
    used = session.get_providers()
    for name, _ in providers:
        if name not in used:  # It falls back in silence.
            raise LoadFailedError(
                f"{name} cannot be used on this machine, and running on another one silently is"
                " not wanted; check the driver and the number of the device, or use KIND_CPU"
            )
    return session

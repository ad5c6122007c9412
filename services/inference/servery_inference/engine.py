"""One ONNX graph in ONNX Runtime, on the execution provider that was asked for and no other.

Sessions are safe to use from several threads. ONNX Runtime releases the interpreter lock while it
loads and runs.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import onnxruntime as ort

from servery_inference.request import Array
from servery_inference.signature import Signature, SignatureUnsupportedError

Provider = Literal["cpu", "cuda"]
PROVIDERS: Final[Mapping[str, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
_LOG_FATAL: Final = 4
_ABSOLUTE_PATH: Final = re.compile(r"(?<![\w.])/[^\s:'\"]+")
_SHOWN_CHARACTERS: Final = 300

_FAULTS: Final = ort.capi.onnxruntime_pybind11_state
_DATA_FAULTS: Final = (_FAULTS.InvalidArgument, _FAULTS.RuntimeException)
_LOAD_FAULTS: Final = (
    *_DATA_FAULTS,
    _FAULTS.EPFail,
    _FAULTS.EngineError,
    _FAULTS.Fail,
    _FAULTS.InvalidGraph,
    _FAULTS.InvalidProtobuf,
    _FAULTS.ModelLoaded,
    _FAULTS.NoModel,
    _FAULTS.NoSuchFile,
    _FAULTS.NotImplemented,
    RuntimeError,
    ValueError,
)


class LoadFailedError(Exception):
    """A version cannot be served. The message says why to whoever reads the repository index."""


class RunFailedError(Exception):
    """A graph does not take these values, though their shapes fit its signature."""


class RunEndedError(Exception):
    """A run was ended from outside, before it had a result."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How sessions run."""

    provider: Provider = "cpu"

    intra_op_threads: int = 1
    """Threads that share one run. More than 1 shortens long runs and costs throughput."""

    auto_max_batch_size: int = 8192
    """`max_batch_size` of models that can batch and do not say how much; 0: they do not batch."""


class Engine:
    """A graph ready to run."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        try:
            self.signature = Signature.of(session.get_inputs(), session.get_outputs())
        except SignatureUnsupportedError as error:
            raise LoadFailedError(str(error)) from None

    def run(
        self,
        feed: Mapping[str, Array],
        outputs: Sequence[str],
        options: ort.RunOptions | None = None,
    ) -> list[Array]:
        """Run once, on the calling thread.

        Args:
            feed: An array for every input.
            outputs: Names of what to compute.
            options: Its `terminate`, set by another thread, ends the run.

        Raises:
            RunFailedError: A node refuses the values it is given.
            RunEndedError: `options.terminate` was set.
        """
        try:
            results: list[Array] = self._session.run(outputs, feed, options)
        except _DATA_FAULTS as error:
            raise RunFailedError(_explained(error)) from None
        except _FAULTS.Fail as error:  # What a kernel reports, of values and of being told to stop.
            if options is not None and options.terminate:
                raise RunEndedError from None
            raise RunFailedError(_explained(error)) from None
        return results


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


def open_engine(graph: Path, settings: EngineSettings) -> Engine:
    """Load `graph`, with external data only from beside it. Blocks; takes seconds for large graphs.

    Raises:
        LoadFailedError: It is no graph that this provider runs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL  # What goes wrong arrives as an exception.
    # A pool that spins takes the cores that the transport works on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = PROVIDERS[settings.provider]
    providers = [wanted] if settings.provider == "cpu" else [wanted, PROVIDERS["cpu"]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # The check below is stricter.
            session = ort.InferenceSession(graph, options, providers=providers)
    except _LOAD_FAULTS as error:
        raise LoadFailedError(f"ONNX Runtime cannot load the graph: {_explained(error)}") from None
    if wanted not in session.get_providers():  # It falls back in silence.
        raise LoadFailedError(
            f"{wanted} cannot be used on this machine, and running on another one silently is not"
            " wanted; check the driver, or start with --execution-provider cpu"
        )
    return Engine(session)


def _explained(error: Exception) -> str:
    """The text of an ONNX Runtime error in one line, without places on this or another machine."""
    text = _ABSOLUTE_PATH.sub("…", " ".join(str(error).split()))
    return text[:_SHOWN_CHARACTERS]

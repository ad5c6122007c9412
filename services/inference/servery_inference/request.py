"""An inference request and its answer as values, and why a request is refused.

Texts that clients compare are those of the Open Inference Protocol's reference server. Names are
cut in them: a status travels in HTTP/2 trailers, which have little room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import ServeryError

_SHOWN_CHARACTERS: Final = 100
_SHOWN_AXES: Final = 16

Array = NDArray[Any]


class InferenceRequestInvalidError(ServeryError):
    """A tensor or parameter of a request does not fit the model."""

    reason = reasons.ERROR_REASON_INFERENCE_REQUEST_INVALID

    def __init__(self, message: str, model: str) -> None:
        super().__init__(message, model=shown(model))


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a registered region of shared memory."""

    name: str
    """Of the region."""

    offset: int
    """Where the part begins in the region, in bytes."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """As what an output is wanted, and where."""

    region: Region | None
    """Where to write it; None: in the answer."""

    num_classes: int
    """How many of the top classes are wanted instead of the values; 0 for the values."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input as it arrived. Exactly one of `raw`, `typed` and `region` holds its data."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    raw: memoryview | None
    """Elements in the layout of `raw_input_contents`; a view of the request."""

    typed: Mapping[str, Sequence[Any]] | None
    """The lists of `InferTensorContents` that are not empty, by field."""

    region: Region | None = None
    """Where to read `raw`."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request says about its turn: how urgent it is, and of which sequence it is part."""

    priority: int = 0
    """1 is served first; 0 means the model's default."""

    timeout_us: int = 0
    """Longest wait in the queue, in microseconds; 0 means the model's default."""

    sequence_id: int | str = 0
    """0 and the empty text mean none."""

    sequence_start: bool = False
    sequence_end: bool = False


NO_TERMS: Final = Terms()


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that is well formed; whether it fits a model is not known yet."""

    model: str
    version: str
    id: str
    inputs: tuple[Input, ...]

    outputs: tuple[str, ...]
    """Names of the outputs to return; empty means all."""

    parsed_bytes: int
    """How many bytes of it take Python work for each element, unlike raw numbers."""

    terms: Terms = NO_TERMS

    placements: Mapping[str, Placement] = field(default_factory=dict)
    """By name of output; those that are wanted as they are, in the answer, are absent."""

    shares_memory: bool = False
    """Whether an input or output is in shared memory."""

    explain: bool = False
    """Whether an explanation is wanted instead of the answer."""


@dataclass(frozen=True, slots=True)
class Output:
    """One output of an answer."""

    name: str
    datatype: str

    value: Array
    """Elements of the datatype; `str` objects for BYTES."""

    region: Region | None = None
    """Where it was written instead of into the answer."""


@dataclass(slots=True)
class Timing:
    """Where the time of one request went, in nanoseconds. It grows on its way to the caller."""

    queue_ns: int
    """Its wait for a batch and an instance."""

    compute_input_ns: int
    """Gathering of inputs; of the whole batch, as are the next two."""

    compute_infer_ns: int
    compute_output_ns: int

    share: float = 1.0
    """The part of the rows of its batch that were its own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model gave for one request, not serialized yet."""

    version: int
    """The version that ran, from 1 up."""

    outputs: Sequence[Output]
    """The wanted ones, in the order of the model."""

    timing: Timing

    rows: int = 1
    """Of the request, where the model takes batches."""


def shown(text: str) -> str:
    """Return `text`, short enough for an error."""
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def shown_shape(shape: Sequence[int]) -> str:
    """Render a shape as clients know it, such as `[-1,16]`."""
    axes = ",".join(str(size) for size in shape[:_SHOWN_AXES])
    return f"[{axes},…]" if len(shape) > _SHOWN_AXES else f"[{axes}]"

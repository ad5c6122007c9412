"""The gate: the graph that will be served computes what was trained.

Floats may differ a little, all other outputs not at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import ServeryError
from servery_trainer.heads import Arrays
from servery_trainer.networks import (
    Autoencoder,
    Convolutional,
    Custom,
    Dense,
    Embedding,
    Family,
    Recurrent,
    Transformer,
    TwoTower,
)

TOLERANCES: Final[dict[type[Family], float]] = {
    Dense: 1e-4,
    Convolutional: 1e-4,
    Embedding: 1e-4,
    Recurrent: 1e-4,
    Transformer: 1e-4,
    Autoencoder: 1e-4,
    TwoTower: 1e-4,
    Custom: 1e-4,
}
"""Largest relative error of the converted network; what we saw is below 1e-6."""

BATCH_SIZES: Final = (1, 7, 64)
"""Each is tried on at most `_RUNS` batches, then all rows at once."""

_RUNS: Final = 16
_CHUNK: Final = 1024


class ParityFailedError(ServeryError):
    """The graph does not reproduce the trained network."""

    reason = reasons.ERROR_REASON_PARITY_FAILED

    def __init__(self, max_relative_error: float, tolerance: float) -> None:
        super().__init__(
            f"the converted graph is off by {max_relative_error:.3g} where {tolerance:g} is"
            " allowed; nothing was published, report this with the spec of the job",
            max_relative_error=repr(max_relative_error),
            tolerance=repr(tolerance),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How close the graph is to the trained network."""

    row_count: int
    max_relative_error: float
    """Largest |onnx - trained| / max(|trained|, 1) over all floats; NaN if one is NaN."""
    label_agreement: float
    """Share of rows whose other outputs (labels, numbers) are the same, 0 to 1."""
    tolerance: float


CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"


class Graph:
    """A model loaded into ONNX Runtime.

    Args:
        model: What to load.
        threads: Threads of one run, at least 1.
        provider: What computes it, `CPU` or `CUDA`; the latter leaves what it cannot to the CPU.
    """

    def __init__(self, model: onnx.ModelProto, threads: int, provider: str = CPU) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=list(dict.fromkeys((provider, CPU)))
        )
        self.provider = self._session.get_providers()[0]
        """What does compute it: ONNX Runtime falls back without a word."""
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return all outputs for these rows; texts as `str` arrays."""
        found = zip(self._outputs, self._session.run(self._outputs, inputs), strict=True)
        return {
            name: values.astype(np.str_) if values.dtype == np.object_ else values
            for name, values in found
        }

    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return all outputs for any number of rows, from 1, in bounded memory."""
        return _joined([self.run(part) for part in _parts(inputs, _CHUNK)])


def check_parity(
    graph: Graph,
    inputs: Arrays,
    expected: Arrays,
    tolerance: float,
) -> Parity:
    """Compare `graph` with the trained network, in batches of several sizes.

    Args:
        graph: What will be served.
        inputs: Raw rows that were not trained on, at least one.
        expected: The outputs that follow from what the trained network says to them.
        tolerance: Largest relative error to accept.

    Raises:
        ParityFailedError: The error is larger, or no number.
    """
    rows = row_count(expected)
    errors, agreement = [], 1.0
    for size in sorted({min(size, rows) for size in (*BATCH_SIZES, rows)}):
        got = _joined([graph.run(part) for part in islice(_parts(inputs, size), _RUNS)])
        compared = {name: values[: row_count(got)] for name, values in expected.items()}
        error, agreement = compare(got, compared)
        errors.append(error)
    worst = float(np.max(errors))  # NaN stays NaN
    if not worst <= tolerance:
        raise ParityFailedError(worst, tolerance)
    return Parity(
        row_count=rows,
        max_relative_error=worst,
        label_agreement=agreement,  # of the last size: all rows
        tolerance=tolerance,
    )


def compare(got: Arrays, expected: Arrays) -> tuple[float, float]:
    """Return the largest relative error of the floats, and the share of rows alike in the rest."""
    error, alike_B = 0.0, np.ones(row_count(expected), np.bool_)
    for name, values in expected.items():
        if values.dtype.kind == "f":
            error = float(np.maximum(error, relative_error(got[name], values)))  # NaN stays NaN
        else:
            alike_B &= (got[name] == values).reshape(len(values), -1).all(axis=1)
    return error, float(alike_B.mean())


def relative_error(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest |got - expected| / max(|expected|, mean |expected|, 1).

    A number near 0 among large ones has their rounding. NaN if there is a NaN.
    """
    difference, sizes = np.abs(got.astype(np.float64) - expected), np.abs(expected)
    return float(np.max(difference / np.maximum(sizes, max(sizes.mean(dtype=np.float64), 1))))


def row_count(arrays: Arrays) -> int:
    """Return the length of the first axis, which all of them share."""
    return len(next(iter(arrays.values())))


def _parts(arrays: Arrays, size: int) -> Iterator[dict[str, NDArray[Any]]]:
    for start in range(0, row_count(arrays), size):
        yield {name: values[start : start + size] for name, values in arrays.items()}


def _joined(parts: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

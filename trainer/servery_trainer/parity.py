"""The gate: the graph that will be served computes what was trained.

Shape suffixes: B rows, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import ServeryError
from servery_trainer.preprocessing import FloatArray
from servery_trainer.rows import LABEL_OUTPUT, PROBABILITIES_OUTPUT

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
    """Largest |onnx - keras| / max(|keras|, 1) over all probabilities; NaN if one is NaN."""
    label_agreement: float
    """Share of rows with the same label, 0 to 1."""
    tolerance: float


class Graph:
    """A model loaded into ONNX Runtime on the CPU.

    Args:
        model: What to load.
        threads: Threads of one run, at least 1.
    """

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[FloatArray, NDArray[np.str_]]:
        """Return probabilities [B, K] and labels [B] of these rows."""
        probabilities, labels = self._session.run([PROBABILITIES_OUTPUT, LABEL_OUTPUT], inputs)
        return probabilities, labels[:, 0].astype(np.str_)

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """Return the probabilities [B, K] of any number of rows, from 1, in bounded memory."""
        rows = len(next(iter(inputs.values())))
        starts = range(0, rows, _CHUNK)
        return np.concatenate([self.run(_slice(inputs, start, _CHUNK))[0] for start in starts])


def check_parity(
    graph: Graph,
    inputs: Mapping[str, NDArray[Any]],
    expected_BK: FloatArray,
    labels: Sequence[str],
    tolerance: float,
) -> Parity:
    """Compare `graph` with the trained network, in batches of several sizes.

    Args:
        graph: What will be served.
        inputs: Raw rows that were not trained on, at least one.
        expected_BK: The probabilities the trained network gives for them.
        labels: The text of each class.
        tolerance: Largest relative error to accept.

    Raises:
        ParityFailedError: The error is larger, or no number.
    """
    rows = len(expected_BK)
    expected_labels_B = np.array(labels)[expected_BK.argmax(axis=1)]
    errors, agreement = [], 1.0
    for size in sorted({min(size, rows) for size in (*BATCH_SIZES, rows)}):
        starts = range(0, rows, size)[:_RUNS]
        runs = [graph.run(_slice(inputs, start, size)) for start in starts]
        probabilities_BK = np.concatenate([run[0] for run in runs])
        labels_B = np.concatenate([run[1] for run in runs])
        errors.append(relative_error(probabilities_BK, expected_BK[: len(probabilities_BK)]))
        agreement = float(np.mean(labels_B == expected_labels_B[: len(labels_B)]))
    worst = float(np.max(errors))  # NaN stays NaN
    if not worst <= tolerance:
        raise ParityFailedError(worst, tolerance)
    return Parity(
        row_count=rows,
        max_relative_error=worst,
        label_agreement=agreement,  # of the last size: all rows
        tolerance=tolerance,
    )


def relative_error(got: FloatArray, expected: FloatArray) -> float:
    """Return the largest |got - expected| / max(|expected|, 1); NaN if there is a NaN."""
    difference = np.abs(got.astype(np.float64) - expected)
    return float(np.max(difference / np.maximum(np.abs(expected), 1)))


def _slice(inputs: Mapping[str, NDArray[Any]], start: int, size: int) -> dict[str, NDArray[Any]]:
    return {name: values[start : start + size] for name, values in inputs.items()}

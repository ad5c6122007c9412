"""What a graph answers, how good that is, and how it is told: one head for each kind of target.

A network says numbers, its objective turns them into *answers* (one tensor whose first axis is the
batch: probabilities, values, scores), and the head turns answers into the named outputs of the
graph, twice: in NumPy (`decode`) and in ONNX (`to_onnx`). Everything after that (parity, golden
rows, variants, importances) compares named outputs and knows no head: floats within a tolerance,
all else exactly.

Shape suffixes: B rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import onnx
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb

Arrays = Mapping[str, NDArray[Any]]
"""Inputs or outputs of a graph by name; the first axis of each is B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One named output of a graph."""

    name: str
    dtype: np.dtype[Any]
    """Objects are texts."""
    shape: tuple[int, ...]
    """Of one row."""
    meaning: str
    labels: tuple[str, ...] = ()
    """The name of each number, if they have any."""


_DATATYPES: Final = {"float16": "FP16", "float32": "FP32", "object": "BYTES"}


def datatype(dtype: np.dtype[Any]) -> str:
    """Return what the Open Inference Protocol calls the type of an input or output."""
    return _DATATYPES.get(dtype.name, dtype.name.upper())


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTail:
    """The last nodes of a graph."""

    nodes: Sequence[onnx.NodeProto]
    initializers: Sequence[onnx.TensorProto] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """How good a graph is on some rows."""

    result: pb.TrainingResult
    """The fields that tell it: `metrics`, `intervals` and what else the head has."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `metrics.json`."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files by name."""


def intervals(ends: Mapping[str, tuple[float, float]]) -> dict[str, pb.Interval]:
    """Render intervals for `Findings.result`."""
    return {name: pb.Interval(lower=low, upper=high) for name, (low, high) in ends.items()}


class Head(Protocol):
    """Turns answers into the outputs of a graph, and judges these."""

    @property
    def outputs(self) -> Sequence[Output]:
        """Of the graph, in its order."""

    @property
    def score(self) -> str:
        """The metric that is the mean of `row_scores`: what graphs and inputs are compared by."""

    def decode(self, answers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Return all outputs for these answers; texts as `str` arrays."""

    def to_onnx(self, answers: str, prefix: str) -> GraphTail:
        """Write `decode` as ONNX nodes.

        Args:
            answers: Name of the tensor that holds the answers.
            prefix: What the names of all other tensors but the outputs shall start with.
        """

    def clearness_B(self, answers: NDArray[np.float32]) -> NDArray[np.floating]:
        """Tell how far each row is from another text or number; golden rows are the clearest."""

    def row_scores(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return a figure for each row [B], higher for a better answer.

        Args:
            outputs: Of the graph.
            values: `Target.values` of the same rows.
        """

    def metrics(self, outputs: Arrays, values: NDArray[Any]) -> dict[str, float]:
        """Return `Findings.result.metrics` alone, also of few rows; see `row_scores`."""

    def evaluate(self, outputs: Arrays, values: NDArray[Any]) -> Findings:
        """Judge the outputs for rows not trained on, at least one; see `row_scores`."""


@runtime_checkable
class Calibrated(Head, Protocol):
    """A head that needs to see answers before it can decode any."""

    def calibrated(self, answers: NDArray[np.float32]) -> Head:
        """Return the head to use, given the answers for the validation part."""

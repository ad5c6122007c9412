"""What happens to raw values before the network, fitted once and written twice.

The fitted numbers are data. `apply` uses them in NumPy for training, `to_onnx` in the graph for
serving, with the same operations in the same order and precision: their results are equal, bit for
bit.

Shape suffixes: B rows, F features, H height, W width, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from servery.trainer.v1 import training_pb2
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.rows import IMAGE_INPUT
from servery_trainer.spec import Spec, TabularTask

FloatArray = NDArray[np.float32]
BATCH = "batch"
"""Symbol of the first axis of every tensor."""

_CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPart:
    """The first nodes of a graph."""

    inputs: Sequence[onnx.ValueInfoProto]
    nodes: Sequence[onnx.NodeProto]
    initializers: Sequence[onnx.TensorProto]


class Preprocessing(Protocol):
    """Turns the raw inputs of a graph into the one input of its network."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the features of one row."""

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """Return the features [B, ...] of these rows."""

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """Write the same as ONNX nodes.

        Args:
            features: Name of the tensor that is to hold the features.
            prefix: What the names of all other tensors inside shall start with.
        """


def fit_preprocessing(spec: Spec, train: Mapping[str, NDArray[Any]]) -> Preprocessing:
    """Fit what `spec` asks for on the training part, and nothing else.

    Args:
        spec: What to learn.
        train: The inputs of the training part, at least one row.

    Raises:
        DatasetInvalidError: A column to impute has no value in the training part.
    """
    if isinstance(spec.task, TabularTask):
        impute = spec.task.missing == training_pb2.MISSING_POLICY_IMPUTE_MEDIAN
        return TablePreprocessing.fit(train, impute=impute)
    return ImagePreprocessing.fit(train[IMAGE_INPUT])


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePreprocessing:
    """Imputes the median where asked, then standardises each column."""

    columns: tuple[str, ...]
    medians: FloatArray | None
    """Of each column, [F]. None: missing values stay NaN."""
    means: FloatArray
    """Of each column, [F]."""
    deviations: FloatArray
    """Standard deviation of each column, [F]; 1 for a constant one."""

    @classmethod
    def fit(cls, train: Mapping[str, NDArray[np.float32]], *, impute: bool) -> Self:
        """Fit each column [B, 1]; see `fit_preprocessing`."""
        medians, means, deviations = [], [], []
        for name, column in train.items():
            values = column[:, 0]
            if impute:
                median = _median(name, values)
                medians.append(median)
                values = np.where(np.isnan(values), median, values)
            mean, deviation = _moments(values)
            means.append(mean)
            deviations.append(deviation)
        return cls(
            columns=tuple(train),
            medians=np.array(medians, np.float32) if impute else None,
            means=np.array(means, np.float32),
            deviations=np.array(deviations, np.float32),
        )

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return (len(self.columns),)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        values_BF = np.concatenate([inputs[name] for name in self.columns], axis=1)
        if self.medians is not None:
            values_BF = np.where(np.isnan(values_BF), self.medians, values_BF)
        with np.errstate(over="ignore"):
            return _float32((values_BF - self.means) / self.deviations)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        names = {key: f"{prefix}{key}" for key in ("table", "missing", "filled", "centred")}
        nodes = [helper.make_node("Concat", list(self.columns), [names["table"]], axis=1)]
        constants = {f"{prefix}means": self.means, f"{prefix}deviations": self.deviations}
        filled = names["table"]
        if self.medians is not None:
            constants[f"{prefix}medians"] = self.medians
            filled = names["filled"]
            nodes += [
                helper.make_node("IsNaN", [names["table"]], [names["missing"]]),
                helper.make_node(
                    "Where", [names["missing"], f"{prefix}medians", names["table"]], [filled]
                ),
            ]
        nodes += _standardise(filled, names["centred"], features, prefix)
        return GraphPart(
            inputs=[_float_input(name) for name in self.columns],
            nodes=nodes,
            initializers=_initializers(constants),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreprocessing:
    """Standardises all pixels by one mean and one standard deviation."""

    shape: tuple[int, int, int]
    """Height, width and channels."""
    dtype: np.dtype[Any]
    """Of the images as they are sent."""
    mean: np.float32
    deviation: np.float32

    @classmethod
    def fit(cls, train_BHWC: NDArray[Any]) -> Self:
        """Fit all pixels of all images; see `fit_preprocessing`."""
        mean, deviation = _moments(train_BHWC)
        _, height, width, channels = train_BHWC.shape
        return cls(
            shape=(height, width, channels),
            dtype=train_BHWC.dtype,
            mean=mean,
            deviation=deviation,
        )

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return self.shape

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        pixels_BHWC = inputs[IMAGE_INPUT].astype(np.float32)
        with np.errstate(over="ignore"):
            return _float32((pixels_BHWC - self.mean) / self.deviation)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        pixels, centred = f"{prefix}pixels", f"{prefix}centred"
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        image = helper.make_tensor_value_info(IMAGE_INPUT, element, [BATCH, *self.shape])
        cast = helper.make_node("Cast", [IMAGE_INPUT], [pixels], to=onnx.TensorProto.FLOAT)
        return GraphPart(
            inputs=[image],
            nodes=[cast, *_standardise(pixels, centred, features, prefix)],
            initializers=_initializers(
                {f"{prefix}means": self.mean, f"{prefix}deviations": self.deviation}
            ),
        )


def _standardise(values: str, centred: str, features: str, prefix: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Sub", [values, f"{prefix}means"], [centred]),
        helper.make_node("Div", [centred, f"{prefix}deviations"], [features]),
    ]


def _float_input(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [BATCH, 1])


def _initializers(constants: Mapping[str, Any]) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in constants.items()
    ]


def _median(column: str, values: FloatArray) -> np.float32:
    present = values[~np.isnan(values)]
    if not len(present):
        raise DatasetInvalidError(
            Problem.MISSING_VALUE,
            f"column {column!r} has no value in any row of the training part; leave it out of the"
            " features",
            column=column,
        )
    return np.float32(np.median(present.astype(np.float64)))


def _moments(values: NDArray[Any]) -> tuple[np.float32, np.float32]:
    """Return mean and standard deviation, computed in float64 without a float64 copy of it all."""
    chunks = [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
    mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in chunks) / values.size
    squares = (float(np.square(chunk.astype(np.float64) - mean).sum()) for chunk in chunks)
    deviation = np.float32(np.sqrt(sum(squares) / values.size))
    constant = values.min() == values.max() or deviation == 0
    return np.float32(mean), np.float32(1) if constant else deviation


def _float32(values: NDArray[Any]) -> FloatArray:
    return values.astype(np.float32, copy=False)

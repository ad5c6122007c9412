"""What happens to raw values before the network, fitted once and written twice.

The fitted numbers are data. `apply` uses them in NumPy for training, `to_onnx` in the graph for
serving, with the same operations in the same order and precision: their results are equal, bit for
bit.

Shape suffixes: B rows, F features, H height, W width, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from servery_trainer.clipping import Clip

FloatArray = NDArray[np.float32]
BATCH = "batch"
"""Symbol of the first axis of every tensor."""

NumberFill = Callable[[str, FloatArray], np.float32]
"""From the name and the values of a column, NaN for a missing one, to what to put in for these."""

_CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPart:
    """The first nodes of a graph."""

    inputs: Sequence[onnx.ValueInfoProto]
    nodes: Sequence[onnx.NodeProto]
    initializers: Sequence[onnx.TensorProto]
    opset: int = 18
    """Version of the standard operators that it needs at least."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePreprocessing:
    """Holds columns of numbers within bounds, fills in what is missing, and standardises them.

    The first two only where asked.
    """

    columns: tuple[str, ...]
    bounds: tuple[FloatArray, FloatArray] | None
    """Smallest and largest value, by column, [F] each. None: whatever comes."""
    fills: FloatArray | None
    """What a missing value becomes, by column, [F]. None: it stays NaN."""
    means: FloatArray
    """Of each column, [F]."""
    deviations: FloatArray
    """Standard deviation of each column, [F]; 1 for a constant one."""

    @classmethod
    def fit(
        cls,
        train: Mapping[str, NDArray[np.float32]],
        *,
        fill: NumberFill | None,
        clip: Mapping[str, Clip] | None = None,
    ) -> Self:
        """Fit each column [B, 1].

        Args:
            train: The columns of the training part, at least one row.
            fill: What to put in for missing values. None: nothing.
            clip: Between which values some columns are held.

        Raises:
            DatasetInvalidError: `fill` or `clip` needs a value, and a column has none.
        """
        fills, means, deviations = [], [], []
        lows, highs = [], []
        for name, column in train.items():
            values = column[:, 0]
            low, high = (clip or {}).get(name, Clip()).fit(name, values)
            lows.append(low)
            highs.append(high)
            values = _held(values, low, high)
            if fill:
                fills.append(fill(name, values))
                values = np.where(np.isnan(values), fills[-1], values)
            mean, deviation = mean_and_deviation(values)
            means.append(mean)
            deviations.append(deviation)
        return cls(
            columns=tuple(train),
            bounds=(np.array(lows, np.float32), np.array(highs, np.float32)) if clip else None,
            fills=np.array(fills, np.float32) if fill else None,
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
        if self.bounds is not None:
            values_BF = _held(values_BF, *self.bounds)
        if self.fills is not None:
            values_BF = np.where(np.isnan(values_BF), self.fills, values_BF)
        with np.errstate(over="ignore"):
            return _float32((values_BF - self.means) / self.deviations)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        names = {key: f"{prefix}{key}" for key in ("table", "missing", "filled", "centred")}
        nodes = [helper.make_node("Concat", list(self.columns), [names["table"]], axis=1)]
        constants = {f"{prefix}means": self.means, f"{prefix}deviations": self.deviations}
        filled = names["table"]
        if self.bounds is not None:
            constants |= {f"{prefix}low": self.bounds[0], f"{prefix}high": self.bounds[1]}
            for end, outside in (("low", "Less"), ("high", "Greater")):
                held, hit, bound = f"{prefix}held_{end}", f"{prefix}{outside}", f"{prefix}{end}"
                nodes += [
                    helper.make_node(outside, [filled, bound], [hit]),
                    helper.make_node("Where", [hit, bound, filled], [held]),
                ]
                filled = held
        if self.fills is not None:
            constants[f"{prefix}fills"] = self.fills
            nodes += [
                helper.make_node("IsNaN", [filled], [names["missing"]]),
                helper.make_node(
                    "Where", [names["missing"], f"{prefix}fills", filled], [names["filled"]]
                ),
            ]
            filled = names["filled"]
        nodes += _standardise(filled, names["centred"], features, prefix)
        return GraphPart(
            inputs=[_float_input(name) for name in self.columns],
            nodes=nodes,
            initializers=initializers(constants),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayPreprocessing:
    """Standardises the numbers of one array, such as the pixels of images."""

    input: str
    """Name of the array."""
    shape: tuple[int, ...]
    """Of one row."""
    dtype: np.dtype[Any]
    """Of the array as it is sent."""
    mean: NDArray[np.float32] | np.float32
    """Of all numbers, or of each channel: of all that are last in their row alike."""
    deviation: NDArray[np.float32] | np.float32
    """Standard deviation of the same; 1 if they are constant."""

    @classmethod
    def fit(cls, name: str, train: NDArray[Any], *, by_channel: bool) -> Self:
        """Fit all rows of an array; see `fit_preprocessing`."""
        if by_channel:
            moments = [
                mean_and_deviation(train[..., channel]) for channel in range(train.shape[-1])
            ]
            mean, deviation = (np.array(part) for part in zip(*moments, strict=True))
        else:
            mean, deviation = map(np.asarray, mean_and_deviation(train))
        return cls(
            input=name,
            shape=train.shape[1:],
            dtype=train.dtype,
            mean=mean,
            deviation=deviation,
        )

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return self.shape

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        values = inputs[self.input].astype(np.float32)
        with np.errstate(over="ignore"):
            return _float32((values - self.mean) / self.deviation)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        values, centred = f"{prefix}values", f"{prefix}centred"
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        array = helper.make_tensor_value_info(self.input, element, [BATCH, *self.shape])
        cast = helper.make_node("Cast", [self.input], [values], to=onnx.TensorProto.FLOAT)
        return GraphPart(
            inputs=[array],
            nodes=[cast, *_standardise(values, centred, features, prefix)],
            initializers=initializers(
                {f"{prefix}means": self.mean, f"{prefix}deviations": self.deviation}
            ),
        )


def _standardise(values: str, centred: str, features: str, prefix: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Sub", [values, f"{prefix}means"], [centred]),
        helper.make_node("Div", [centred, f"{prefix}deviations"], [features]),
    ]


def _held(values: NDArray[Any], low: Any, high: Any) -> NDArray[Any]:
    """Hold values between bounds; NaN stays, as in the graph."""
    values = np.where(values < low, low, values)
    return np.where(values > high, high, values)


def _float_input(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [BATCH, 1])


def initializers(constants: Mapping[str, Any]) -> list[onnx.TensorProto]:
    """Return constants of a graph by name; arrays of objects are texts."""
    return [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]


def mean_and_deviation(values: NDArray[Any]) -> tuple[np.float32, np.float32]:
    """Return mean and standard deviation, computed in float64 without a float64 copy of it all."""
    chunks = [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
    mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in chunks) / values.size
    squares = (float(np.square(chunk.astype(np.float64) - mean).sum()) for chunk in chunks)
    deviation = np.float32(np.sqrt(sum(squares) / values.size))
    constant = values.min() == values.max() or deviation == 0
    return np.float32(mean), np.float32(1) if constant else deviation


def _float32(values: NDArray[Any]) -> FloatArray:
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedPreprocessing:
    """Puts the features of several parts, each of rank 2, side by side."""

    parts: Sequence[Preprocessing]
    columns: Sequence[str]
    """The inputs of all parts, in the order of the graph."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return (sum(part.feature_shape[0] for part in self.parts),)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        return np.concatenate([part.apply(inputs) for part in self.parts], axis=1)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        names = [f"{prefix}part{index}" for index in range(len(self.parts))]
        graphs = [
            part.to_onnx(name, f"{name}/") for part, name in zip(self.parts, names, strict=True)
        ]
        inputs = {value.name: value for graph in graphs for value in graph.inputs}
        join = helper.make_node("Concat", names, [features], axis=1)
        return GraphPart(
            inputs=[inputs[name] for name in self.columns],
            nodes=[*(node for graph in graphs for node in graph.nodes), join],
            initializers=[tensor for graph in graphs for tensor in graph.initializers],
            opset=max(graph.opset for graph in graphs),
        )

"""Other graphs that give the answers of one, more or less, by ONNX Runtime's own tools.

Shape suffixes: B rows.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

CALIBRATION_ROWS: Final = 256
_CALIBRATION_BATCH: Final = 32
_PRODUCTS: Final = ["MatMul", "Gemm"]
_STATIC: Final = ["Conv", "MatMul", "Gemm", "Relu", "MaxPool"]
"""Not those that preprocessing and label decoding use: these stay exact."""


def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite the graph as ONNX Runtime does on loading, but for what depends on the machine."""

    def write(source: Path, target: Path) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return _rewritten(model, write)


def int8_dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights of matrix products as 8-bit integers; activations follow at run time."""

    def write(source: Path, target: Path) -> None:
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=_PRODUCTS,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )

    return _rewritten(model, write)


def int8_static(model: onnx.ModelProto, calibration: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """Compute in 8-bit integers, in ranges seen on some rows.

    Args:
        model: The graph.
        calibration: Inputs of rows of the training part; the first `CALIBRATION_ROWS` are used.
    """

    def write(source: Path, target: Path) -> None:
        prepared = target.with_name("prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            _Batches(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_STATIC,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )

    return _rewritten(model, write)


class _Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        rows = min(CALIBRATION_ROWS, len(next(iter(inputs.values()))))
        self._batches = (
            {name: values[start : start + _CALIBRATION_BATCH] for name, values in inputs.items()}
            for start in range(0, rows, _CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the inputs of some rows; None after the last."""
        return next(self._batches, None)


def _rewritten(model: onnx.ModelProto, write: Callable[[Path, Path], None]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source.onnx"), Path(directory, "target.onnx")
        onnx.save(model, source)
        write(source, target)
        rewritten = onnx.load(target)
    onnx.checker.check_model(rewritten)
    return rewritten

"""Other graphs that give the answers of one, more or less, by ONNX Runtime's own tools.

Shape suffixes: B rows.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from servery_trainer.frameworks import ANSWERS, FEATURES

CALIBRATION_ROWS: Final = 256
_CALIBRATION_BATCH: Final = 32
_FEATURES: Final = re.compile(f"_+/{FEATURES}")
_ANSWERS: Final = re.compile(f"_+/{ANSWERS}")
"""What `export` calls them in the whole graph."""

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


def float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights of the networks as 16-bit floats and compute in these.

    Preprocessing and the decoding of answers, which see numbers of any size, stay as they are.
    """
    graph = model.graph
    places = {output: index for index, node in enumerate(graph.node) for output in node.output}
    (features,) = (name for name in places if _FEATURES.fullmatch(name))
    (answers,) = (name for name in places if _ANSWERS.fullmatch(name))
    first, last = places[features] + 1, places[answers] + 1
    inner = graph.node[first:last]
    read = {name for node in inner for name in node.input}
    networks = helper.make_model(
        helper.make_graph(
            inner,
            "networks",
            [helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info(answers, onnx.TensorProto.FLOAT, None)],
            [constant for constant in graph.initializer if constant.name in read],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    converted = OnnxModel(convert_float_to_float16(networks, keep_io_types=True))
    converted.topological_sort()  # the first nodes were added last
    narrow = converted.model.graph
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    del rewritten.graph.node[:], rewritten.graph.initializer[:]
    rewritten.graph.node.extend([*graph.node[:first], *narrow.node, *graph.node[last:]])
    rewritten.graph.initializer.extend(narrow.initializer)
    rewritten.graph.initializer.extend(
        constant for constant in graph.initializer if constant.name not in read
    )
    onnx.checker.check_model(rewritten)
    return rewritten


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

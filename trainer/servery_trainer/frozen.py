"""Preprocessing as another job fitted it: known by its graph alone, and applied by running that.

Shape suffixes: B rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from servery_trainer.export import IR_VERSION, ML_OPSET, unused_prefix
from servery_trainer.preprocessing import BATCH, FloatArray, GraphPart, Preprocessing

_VOCABULARY: Final = "vocabulary"
_OPERATORS: Final = frozenset(
    [
        "Add",
        "And",
        "Cast",
        "Concat",
        "Div",
        "Equal",
        "Gather",
        "Greater",
        "Identity",
        "IsNaN",
        "LabelEncoder",
        "Less",
        "LessOrEqual",
        "Mod",
        "Mul",
        "Pad",
        "ReduceSum",
        "RegexFullMatch",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StringConcat",
        "StringSplit",
        "Sub",
        "TfIdfVectorizer",
        "Where",
    ]
)
"""All that preprocessing is made of. A graph with others was not written here."""


class NotPreprocessingError(Exception):
    """A file holds no graph that `freeze` wrote."""


def freeze(preprocessing: Preprocessing, vocabulary: int) -> bytes:
    """Write preprocessing as a graph of its own, from raw inputs to features.

    Args:
        preprocessing: What to write.
        vocabulary: See `fitting.vocabulary_size`.
    """
    prefix = unused_prefix([value.name for value in preprocessing.to_onnx("", "").inputs])
    part = preprocessing.to_onnx(f"{prefix}features", prefix)
    shape: list[str | int | None] = [BATCH, *preprocessing.feature_shape]
    features = helper.make_tensor_value_info(f"{prefix}features", onnx.TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        part.nodes, "preprocessing", part.inputs, [features], part.initializers
    )
    versions = {"": part.opset, "ai.onnx.ml": ML_OPSET}
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid(domain, versions[domain])
            for domain in sorted({node.domain for node in graph.node})
        ],
        ir_version=IR_VERSION,
        producer_name="servery",
    )
    helper.set_model_props(model, {_VOCABULARY: str(vocabulary)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPreprocessing:
    """See `Preprocessing`; it is not fitted again."""

    graph: onnx.GraphProto
    opset: int
    vocabulary: int
    """See `fitting.vocabulary_size`."""
    session: Any = field(repr=False)
    """Of ONNX Runtime."""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read what `freeze` wrote.

        Raises:
            NotPreprocessingError: It is something else.
        """
        import onnxruntime as ort  # The trainer itself needs no more than the type.

        try:
            model = onnx.load_model_from_string(content)
            _check(model)
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            return cls(
                graph=model.graph,
                opset=next(one.version for one in model.opset_import if not one.domain),
                vocabulary=int(
                    {prop.key: prop.value for prop in model.metadata_props}[_VOCABULARY]
                ),
                session=ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]),
            )
        except NotPreprocessingError:
            raise
        except Exception as error:  # ONNX Runtime has no common base of its errors.
            raise NotPreprocessingError("the graph cannot be read") from error

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        dimensions = self.graph.output[0].type.tensor_type.shape.dim[1:]
        return tuple(dimension.dim_value for dimension in dimensions)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        given = {value.name: inputs[value.name] for value in self.graph.input}
        features: FloatArray = self.session.run(None, given)[0]
        return np.asarray(features, np.float32)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        kept = {value.name: value.name for value in self.graph.input} | {"": ""}
        kept[self.graph.output[0].name] = features
        nodes, constants = [], []
        for node in self.graph.node:
            renamed = onnx.NodeProto()
            renamed.CopyFrom(node)
            renamed.input[:] = [kept.get(name, f"{prefix}{name}") for name in node.input]
            renamed.output[:] = [kept.get(name, f"{prefix}{name}") for name in node.output]
            nodes.append(renamed)
        for tensor in self.graph.initializer:
            constant = onnx.TensorProto()
            constant.CopyFrom(tensor)
            constant.name = f"{prefix}{tensor.name}"
            constants.append(constant)
        return GraphPart(
            inputs=list(self.graph.input), nodes=nodes, initializers=constants, opset=self.opset
        )


def _check(model: onnx.ModelProto) -> None:
    """Let nothing through that preprocessing is never made of, such as loops or other files."""
    strange = {node.op_type for node in model.graph.node} - _OPERATORS
    strange |= {node.domain for node in model.graph.node} - {"", "ai.onnx.ml"}
    outside = any(tensor.external_data for tensor in model.graph.initializer)
    if strange or outside or model.functions or len(model.graph.output) != 1:
        raise NotPreprocessingError(f"the graph holds {', '.join(sorted(strange)) or 'more'}")

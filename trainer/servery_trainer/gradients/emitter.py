"""Writes nodes one after the other, and keeps the shape of what they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Shape = tuple[int | None, ...]
"""None: a length that is not known before a run."""


class UnsupportedError(Exception):
    """A graph has something that cannot be differentiated. The message is for people."""


@dataclass(slots=True)
class Emitter:
    """Nodes in the making.

    Args:
        prefix: What the names of all that is made here start with.
        shapes: Of all tensors there are, also of those that others made; added to.
        constants: Tensors that are known, by name; added to.
        types: ONNX element type of tensors that are not 32-bit floats; added to.
    """

    prefix: str
    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    counter: list[int] = field(default_factory=lambda: [0])

    def inner(self) -> Self:
        """Return an emitter for the body of a loop: nodes of its own, all else shared."""
        return type(self)(
            prefix=self.prefix,
            shapes=self.shapes,
            constants=self.constants,
            types=self.types,
            counter=self.counter,
        )

    def name(self) -> str:
        """Return a name that was not used."""
        self.counter[0] += 1
        return f"{self.prefix}{self.counter[0]}"

    def add(
        self,
        operator: str,
        *inputs: str,
        shape: Shape,
        dtype: int = onnx.TensorProto.FLOAT,
        **attributes: Any,
    ) -> str:
        """Write a node with one output of this shape; return its name."""
        (output,) = self.several(operator, inputs, [shape], dtype=dtype, **attributes)
        return output

    def several(
        self,
        operator: str,
        inputs: Sequence[str],
        shapes: Sequence[Shape],
        dtype: int = onnx.TensorProto.FLOAT,
        **attributes: Any,
    ) -> list[str]:
        """Write a node with one output of each of these shapes; return their names."""
        outputs = [self.name() for _ in shapes]
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        for output, shape in zip(outputs, shapes, strict=True):
            self.shapes[output] = shape
            if dtype != onnx.TensorProto.FLOAT:
                self.types[output] = dtype
        return outputs

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant."""
        array = np.asarray(value, dtype)
        name = self.name()
        tensor = numpy_helper.from_array(array, name)
        self.constants[name] = tensor
        self.shapes[name] = array.shape
        if tensor.data_type != onnx.TensorProto.FLOAT:
            self.types[name] = tensor.data_type
        return name

    def integers(self, *values: int) -> str:
        """Return the name of a constant vector of 64-bit integers."""
        return self.constant(values, np.int64)

    def value(self, name: str, what: str) -> NDArray[Any]:
        """Return a tensor that must be known; `what` it is, for people."""
        if name not in self.constants:
            raise UnsupportedError(f"{what} is computed")
        return numpy_helper.to_array(self.constants[name])

    def reshaped_as(self, tensor: str, model: str) -> str:
        """Return a tensor in the shape of another one."""
        shape = self.shapes[model]
        size = self.add("Shape", model, shape=(len(shape),), dtype=onnx.TensorProto.INT64)
        return self.add("Reshape", tensor, size, shape=shape)

    def zeros(self, model: str) -> str:
        """Return zeros in the shape of a tensor."""
        shape = self.shapes[model]
        size = self.add("Shape", model, shape=(len(shape),), dtype=onnx.TensorProto.INT64)
        return self.add("ConstantOfShape", size, shape=shape)

    def summed_to(self, tensor: str, whole: Shape, part: Shape) -> str:
        """Sum a tensor of shape `whole` over the axes along which `part` was broadcast to it."""
        lead = len(whole) - len(part)
        if lead:
            axes = self.integers(*range(lead))
            whole = whole[lead:]
            tensor = self.add("ReduceSum", tensor, axes, shape=whole, keepdims=0)
        pairs = zip(part, whole, strict=True)
        narrow = [axis for axis, (one, many) in enumerate(pairs) if one == 1 and many != 1]
        if narrow:
            tensor = self.add("ReduceSum", tensor, self.integers(*narrow), shape=part, keepdims=1)
        return tensor


def renamed(
    nodes: Sequence[onnx.NodeProto], names: Mapping[str, str], prefix: str
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Copy nodes without subgraphs: `names` are replaced, all else they make gets the prefix."""
    table = dict(names)
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("name")
        copy.input[:] = [table.get(name, name) for name in node.input]
        for name in node.output:
            if name:
                table.setdefault(name, f"{prefix}{name}")
        copy.output[:] = [table.get(name, name) for name in node.output]
        copies.append(copy)
    return copies, table

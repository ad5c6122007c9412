"""One operator as its rule sees it, and which tensors depend on which."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import onnx
from onnx import helper

from servery_trainer.gradients.emitter import Emitter, Shape, UnsupportedError

_FLAT: Final = frozenset(
    {
        *("And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "Floor", "Greater"),
        *("GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Range"),
        *("Round", "Shape", "Sign", "Size", "Xor"),
    }
)
"""Operators whose derivative is 0 wherever they have one."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def reads(node: onnx.NodeProto) -> set[str]:
    """Return what a node reads, also inside of it."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            made = {value.name for value in attribute.g.input}
            for inner in attribute.g.node:
                names |= reads(inner) - made
                made |= set(inner.output)
    return names - {""}


def dependent(nodes: Sequence[onnx.NodeProto], points: Sequence[str]) -> set[str]:
    """Return the points and all tensors that change smoothly with them."""
    active = set(points)
    for node in nodes:
        flat = node.op_type in _FLAT or (
            node.op_type == "Cast" and attributes(node)["to"] != onnx.TensorProto.FLOAT
        )
        if not flat and active & reads(node):
            active.update(node.output)
    return active


class Step:
    """A node with the gradient of its outputs.

    Args:
        node: Which.
        told: Name of the gradient of each output; None: 0.
        active: Tensors whose gradient is asked for.
        emit: Where to write.
    """

    def __init__(
        self, node: onnx.NodeProto, told: Sequence[str | None], active: set[str], emit: Emitter
    ) -> None:
        self.node = node
        self.told = told
        self.emit = emit
        self._active = active
        self._attributes = attributes(node)

    @property
    def gradient(self) -> str:
        """That of the first output."""
        if self.told[0] is None:
            raise UnsupportedError(f"a further output of {self.node.op_type} is used")
        return self.told[0]

    @property
    def x(self) -> str:
        """The first input."""
        return self.node.input[0]

    @property
    def y(self) -> str:
        """The first output."""
        return self.node.output[0]

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self._attributes.get(name, default)

    def active(self, place: int) -> bool:
        """Tell whether the gradient of an input is asked for."""
        return place < len(self.node.input) and self.node.input[place] in self._active

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor."""
        if name not in self.emit.shapes:
            raise UnsupportedError(f"the shape of what {self.node.op_type} reads is not known")
        return self.emit.shapes[name]

    def like(self, name: str, operator: str, *inputs: str, **options: Any) -> str:
        """Write a node whose output has the shape of tensor `name`."""
        return self.emit.add(operator, *inputs, shape=self.shape(name), **options)

    def elementwise(self, operator: str, *inputs: str) -> str:
        """Write a node whose output has the shape of this node's output."""
        return self.like(self.y, operator, *inputs)

    def where(self, condition: str, *operands: str, gradient: str) -> str:
        """Return the gradient where a comparison holds and 0 elsewhere."""
        holds = self.like(self.y, condition, *operands, dtype=onnx.TensorProto.BOOL)
        return self.elementwise("Where", holds, gradient, self.emit.constant(0))

    def fitted(self, place: int, gradient: str) -> tuple[str, str]:
        """Return an input and its gradient, given that in the shape of the output."""
        name = self.node.input[place]
        return name, self.emit.summed_to(gradient, self.shape(self.y), self.shape(name))


Rule = Callable[[Step], Iterator[tuple[str, str]]]
"""Yields inputs with their gradients, those that are `active` at least."""

"""What a model takes and gives: names, datatypes and shapes, as its graph declares them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from servery_inference.datatypes import BY_ONNX, Datatype

Shape = tuple[int, ...]


class SignatureUnsupportedError(Exception):
    """A graph has an input or output that cannot travel on the wire."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a model."""

    name: str
    datatype: Datatype

    shape: tuple[int, ...]
    """Every axis; -1 where the size is free. The first is the batch, if it is free."""

    inner: Shape | None = None
    """Shape inside the graph, where it is another one with free axes in the same order."""

    optional: bool = False
    """Whether requests may leave the input out, for the graph has a default."""

    @property
    def is_batched(self) -> bool:
        """Whether requests choose the size of the first axis."""
        return bool(self.shape) and self.shape[0] == -1

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a tensor of `shape` (sizes >= 0) may be fed or given here."""
        return len(shape) == len(self.shape) and all(
            size in (-1, given) for size, given in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """All tensors of a model, in the order of its graph."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    optional_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Inputs of a graph that have a default; a model may offer them."""

    max_batch_size: int = 0
    """Rows that one request may have; 0 where requests have no rows."""

    @classmethod
    def of(
        cls, inputs: Iterable[Any], outputs: Iterable[Any], optional_inputs: Iterable[Any] = ()
    ) -> Self:
        """Read what ONNX Runtime reports (`name`, `type`, `shape` of each argument).

        Optional inputs that cannot travel are left out.

        Raises:
            SignatureUnsupportedError: A type has no name on the wire, or nothing comes out.
        """
        possible = [argument for argument in optional_inputs if argument.type in BY_ONNX]
        signature = cls(
            _tensors("input", inputs), _tensors("output", outputs), _tensors("input", possible)
        )
        if not signature.outputs:
            raise SignatureUnsupportedError("the graph has no output")
        return signature

    @property
    def is_batched(self) -> bool:
        """Whether every input has a free first axis, so that requests have rows."""
        return bool(self.inputs) and all(tensor.is_batched for tensor in self.inputs.values())


def refitted(shape: Sequence[int], pattern: Sequence[int], other: Sequence[int]) -> Shape:
    """Return `other` with its free axes as large as those of `pattern` are in `shape`."""
    free = iter([size for size, axis in zip(shape, pattern, strict=True) if axis == -1])
    return tuple(next(free) if axis == -1 else axis for axis in other)


def _tensors(kind: str, arguments: Iterable[Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for argument in arguments:
        datatype = BY_ONNX.get(argument.type)
        if datatype is None:
            raise SignatureUnsupportedError(
                f"{kind} {argument.name!r} has the type {argument.type}, which the protocol cannot"
                f" carry; it carries {', '.join(BY_ONNX)}"
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
        tensors[argument.name] = Tensor(argument.name, datatype, shape)
    return tensors

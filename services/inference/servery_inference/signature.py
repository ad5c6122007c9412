"""What a model takes and gives: names, datatypes and shapes, as its graph declares them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from servery_inference.datatypes import BY_ONNX, Datatype


class SignatureUnsupportedError(Exception):
    """A graph has an input or output that cannot travel on the wire."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a model."""

    name: str
    datatype: Datatype

    shape: tuple[int, ...]
    """Every axis; -1 where the size is free. The first is the batch, if it is free."""

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

    max_batch_size: int = 0
    """Rows that one request may have; 0 where requests have no rows."""

    @classmethod
    def of(cls, inputs: Iterable[Any], outputs: Iterable[Any]) -> Self:
        """Read what ONNX Runtime reports (`name`, `type`, `shape` of each argument).

        Raises:
            SignatureUnsupportedError: A type has no name on the wire, or nothing comes out.
        """
        signature = cls(_tensors("input", inputs), _tensors("output", outputs))
        if not signature.outputs:
            raise SignatureUnsupportedError("the graph has no output")
        return signature

    @property
    def is_batched(self) -> bool:
        """Whether every input has a free first axis, so that requests have rows."""
        return bool(self.inputs) and all(tensor.is_batched for tensor in self.inputs.values())


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

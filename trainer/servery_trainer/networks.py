"""What kind of network a job trains, parsed; `families` builds it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.fields import count
from servery_trainer.tasks import TabularTask, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Hidden layers with ReLU."""

    hidden_units: tuple[int, ...]
    dropout: float

    name: ClassVar = "dense"

    @classmethod
    def parse(cls, family: pb.DenseFamily, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is out of its range.
        """
        units = tuple(family.hidden_units) or (64, 32)
        _each(units, 4096, 16, f"{path}.hidden_units")
        return cls(hidden_units=units, dropout=_dropout(family, 0.1, path))

    def to_proto(self) -> pb.DenseFamily:
        """Render it; `parse` gives an equal value back."""
        return pb.DenseFamily(hidden_units=self.hidden_units, dropout=self.dropout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolutional:
    """Blocks of convolution, ReLU and pooling, then a dense layer."""

    filters: tuple[int, ...]
    dense_units: int
    dropout: float

    name: ClassVar = "convolutional"

    @classmethod
    def parse(cls, family: pb.ConvolutionalFamily, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is out of its range.
        """
        filters = tuple(family.filters) or (32, 64)
        _each(filters, 1024, 8, f"{path}.filters")
        return cls(
            filters=filters,
            dense_units=count(family.dense_units, 64, 4096, f"{path}.dense_units"),
            dropout=_dropout(family, 0.25, path),
        )

    def to_proto(self) -> pb.ConvolutionalFamily:
        """Render it; `parse` gives an equal value back."""
        return pb.ConvolutionalFamily(
            filters=self.filters, dense_units=self.dense_units, dropout=self.dropout
        )


Family = Dense | Convolutional


def parse_family(spec: pb.TrainingSpec, task: Task, root: str) -> Family:
    """Parse the family of the spec at `root`, or take the one that suits the task.

    Raises:
        FieldInvalidError: It does not fit the task, or a field of it is out of its range.
    """
    tabular = isinstance(task, TabularTask)
    chosen = spec.WhichOneof("family") or ("dense" if tabular else "convolutional")
    path = f"{root}.{chosen}"
    if chosen == "dense":
        return Dense.parse(spec.dense, path)
    if tabular:
        raise FieldInvalidError(path, "convolutional", "be dense: tables have no pixels")
    return Convolutional.parse(spec.convolutional, path)


def _each(sizes: Sequence[int], most: int, most_layers: int, field: str) -> None:
    if len(sizes) > most_layers:
        raise FieldInvalidError(field, len(sizes), f"hold at most {most_layers} sizes")
    for index, size in enumerate(sizes):
        if not 1 <= size <= most:
            raise FieldInvalidError(f"{field}[{index}]", size, f"be 1 to {most}")


def _dropout(family: pb.DenseFamily | pb.ConvolutionalFamily, default: float, path: str) -> float:
    dropout = family.dropout if family.HasField("dropout") else default
    if not 0 <= dropout <= 0.9:
        raise FieldInvalidError(f"{path}.dropout", dropout, "be 0 to 0.9")
    return dropout

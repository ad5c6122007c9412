"""What kind of network a job trains, parsed; `families` builds it."""

import hashlib
import json
import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.aims import Goal
from servery_trainer.fields import count, known
from servery_trainer.recommendation_task import RecommendationTask
from servery_trainer.sequence_tasks import ForecastTask, SequenceTask
from servery_trainer.tasks import ImageTask, TabularTask, Task, TextTask


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
        units = tuple(family.hidden_units) or (256, 128)
        _each(units, 4096, 16, f"{path}.hidden_units")
        return cls(hidden_units=units, dropout=_dropout(family, 0.2, path))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The mean of the vectors of all words, then hidden layers with ReLU."""

    dimension: int
    hidden_units: tuple[int, ...]
    dropout: float

    name: ClassVar = "embedding"

    @classmethod
    def parse(cls, family: pb.EmbeddingFamily, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is out of its range.
        """
        units = tuple(family.hidden_units) or (32,)
        _each(units, 4096, 16, f"{path}.hidden_units")
        return cls(
            dimension=count(family.dimension, 64, 1024, f"{path}.dimension"),
            hidden_units=units,
            dropout=_dropout(family, 0.2, path),
        )

    def to_proto(self) -> pb.EmbeddingFamily:
        """Render it; `parse` gives an equal value back."""
        return pb.EmbeddingFamily(
            dimension=self.dimension, hidden_units=self.hidden_units, dropout=self.dropout
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """Word vectors, read one by one by an LSTM or a GRU, perhaps from both ends."""

    cell: pb.RecurrentCell.ValueType
    units: int
    bidirectional: bool
    dimension: int
    dropout: float

    name: ClassVar = "recurrent"

    @classmethod
    def parse(cls, family: pb.RecurrentFamily, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is out of its range.
        """
        cell = known(family.cell, pb.RecurrentCell, f"{path}.cell")
        return cls(
            cell=pb.RecurrentCell.ValueType(cell),
            units=count(family.units, 64, 1024, f"{path}.units"),
            bidirectional=family.bidirectional,
            dimension=count(family.dimension, 64, 1024, f"{path}.dimension"),
            dropout=_dropout(family, 0.2, path),
        )

    def to_proto(self) -> pb.RecurrentFamily:
        """Render it; `parse` gives an equal value back."""
        return pb.RecurrentFamily(
            cell=self.cell,
            units=self.units,
            bidirectional=self.bidirectional,
            dimension=self.dimension,
            dropout=self.dropout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """Word and position vectors, then blocks of self-attention and a dense layer."""

    layers: int
    heads: int
    dimension: int
    feed_forward_units: int
    dropout: float

    name: ClassVar = "transformer"

    @classmethod
    def parse(cls, family: pb.TransformerFamily, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is out of its range.
        """
        dimension = count(family.dimension, 64, 1024, f"{path}.dimension")
        heads = count(family.heads, 4, 64, f"{path}.heads")
        if dimension % heads:
            raise FieldInvalidError(f"{path}.heads", heads, f"divide the dimension {dimension}")
        return cls(
            layers=count(family.layers, 2, 24, f"{path}.layers"),
            heads=heads,
            dimension=dimension,
            feed_forward_units=count(
                family.feed_forward_units, 128, 4096, f"{path}.feed_forward_units"
            ),
            dropout=_dropout(family, 0.1, path),
        )

    def to_proto(self) -> pb.TransformerFamily:
        """Render it; `parse` gives an equal value back."""
        return pb.TransformerFamily(
            layers=self.layers,
            heads=self.heads,
            dimension=self.dimension,
            feed_forward_units=self.feed_forward_units,
            dropout=self.dropout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """Hidden layers with ReLU down to a code and back up; it learns to repeat its features."""

    hidden_units: tuple[int, ...]
    code_units: int
    dropout: float

    name: ClassVar = "autoencoder"

    @classmethod
    def parse(cls, family: pb.AutoencoderFamily, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is out of its range.
        """
        units = tuple(family.hidden_units) or (64, 32)
        _each(units, 4096, 8, f"{path}.hidden_units")
        return cls(
            hidden_units=units,
            code_units=count(family.code_units, 8, 1024, f"{path}.code_units"),
            dropout=_dropout(family, 0.1, path),
        )

    def to_proto(self) -> pb.AutoencoderFamily:
        """Render it; `parse` gives an equal value back."""
        return pb.AutoencoderFamily(
            hidden_units=self.hidden_units, code_units=self.code_units, dropout=self.dropout
        )

    def layers(self, features: int) -> tuple[int, ...]:
        """Return the units of each layer between so many features and their repetition."""
        code = min(self.code_units, max(1, features // 2))
        return (*self.hidden_units, code, *reversed(self.hidden_units))


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTower:
    """A vector for each user and for each item; how well they fit is their product."""

    dimension: int

    name: ClassVar = "two_tower"

    @classmethod
    def parse(cls, family: pb.TwoTowerFamily, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is out of its range.
        """
        return cls(dimension=count(family.dimension, 32, 1024, f"{path}.dimension"))

    def to_proto(self) -> pb.TwoTowerFamily:
        """Render it; `parse` gives an equal value back."""
        return pb.TwoTowerFamily(dimension=self.dimension)


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """What a module of the caller builds; only a process that is shut in may import it."""

    module: str
    """Its source."""
    parameters: Mapping[str, Any]
    """What `build` is called with, as JSON has it."""

    name: ClassVar = "custom"

    @classmethod
    def parse(cls, family: pb.CustomFamily, path: str) -> Self:
        """Parse the message at `path`; the source is not looked into.

        Raises:
            FieldInvalidError: A field is missing, malformed or too large.
        """
        size = len(family.module.encode())
        if not 0 < size <= _MAX_MODULE_BYTES:
            rule = f"hold the source of a module, 1 to {_MAX_MODULE_BYTES} bytes"
            raise FieldInvalidError(f"{path}.module", f"{size} bytes", rule)
        return cls(
            module=family.module, parameters=_parameters(family.parameters, f"{path}.parameters")
        )

    def lineage(self) -> dict[str, str]:
        """Say of a version which module built its networks."""
        return {"module_sha256": hashlib.sha256(self.module.encode()).hexdigest()}

    def to_proto(self) -> pb.CustomFamily:
        """Render it; `parse` gives an equal value back."""
        family = pb.CustomFamily(module=self.module)
        if self.parameters:
            family.parameters.update(self.parameters)
        return family


Family = (
    Dense | Convolutional | Embedding | Recurrent | Transformer | Autoencoder | TwoTower | Custom
)

_MAX_MODULE_BYTES: Final = 64 * 1024
_MAX_PARAMETERS_BYTES: Final = 16 * 1024
_OWN_ARGUMENTS: Final = frozenset({"shape", "outputs", "vocabulary"})

_FAMILIES: Final[tuple[type[Family], ...]] = (
    Dense,
    Convolutional,
    Embedding,
    Recurrent,
    Transformer,
    Autoencoder,
    TwoTower,
    Custom,
)
_FITTING: Final[dict[type[Task], tuple[type[Family], ...]]] = {
    TabularTask: (Dense, Custom),
    ImageTask: (Convolutional, Dense, Custom),
    TextTask: (Dense, Embedding, Recurrent, Transformer, Custom),
    RecommendationTask: (TwoTower,),
    SequenceTask: (Recurrent, Convolutional, Transformer, Dense, Custom),
    ForecastTask: (Recurrent, Convolutional, Transformer, Dense, Custom),
}
"""The families that fit a task, its default first."""


def parse_family(spec: pb.TrainingSpec | pb.Member, task: Task, root: str) -> Family:
    """Parse the family of the message at `root`, or take the one that suits the task.

    Raises:
        FieldInvalidError: It does not fit the task, or a field of it is out of its range.
    """
    finds_anomalies = isinstance(task, TabularTask) and task.aim.goal is Goal.ANOMALY
    fitting = (Autoencoder,) if finds_anomalies else _FITTING[type(task)]
    chosen = spec.WhichOneof("family") or fitting[0].name
    path = f"{root}.{chosen}"
    family = next(family for family in _FAMILIES if family.name == chosen)
    if family not in fitting:
        names = " or ".join(family.name for family in fitting)
        only = "families that fit" if len(fitting) > 1 else "family that fits"
        raise FieldInvalidError(path, chosen, f"be {names}: the only {only} {task.name}")
    message: Any = getattr(spec, chosen)
    return family.parse(message, path)


def _parameters(given: Struct, path: str) -> Mapping[str, Any]:
    try:
        parameters = {
            name: _plain(value) for name, value in json_format.MessageToDict(given).items()
        }
    except ValueError:
        raise FieldInvalidError(path, "NaN or infinity", "hold finite numbers only") from None
    for name in parameters:
        if not name.isidentifier() or keyword.iskeyword(name) or name in _OWN_ARGUMENTS:
            rule = f"name arguments of build other than {', '.join(sorted(_OWN_ARGUMENTS))}"
            raise FieldInvalidError(path, name, rule)
    size = len(json.dumps(parameters))
    if size > _MAX_PARAMETERS_BYTES:
        rule = f"be at most {_MAX_PARAMETERS_BYTES} bytes as JSON"
        raise FieldInvalidError(path, f"{size} bytes", rule)
    return parameters


def _plain(value: Any) -> Any:
    """Return a value of a `Struct`, whose numbers are all floats, with whole ones as `int`."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case _:
            return value


def _each(sizes: Sequence[int], most: int, most_layers: int, field: str) -> None:
    if len(sizes) > most_layers:
        raise FieldInvalidError(field, len(sizes), f"hold at most {most_layers} sizes")
    for index, size in enumerate(sizes):
        if not 1 <= size <= most:
            raise FieldInvalidError(f"{field}[{index}]", size, f"be 1 to {most}")


def _dropout(family: Any, default: float, path: str) -> float:
    dropout: float = family.dropout if family.HasField("dropout") else default
    if not 0 <= dropout <= 0.9:
        raise FieldInvalidError(f"{path}.dropout", dropout, "be 0 to 0.9")
    return dropout

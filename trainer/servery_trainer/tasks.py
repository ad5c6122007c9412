"""What a job is to learn and from what, parsed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import sources
from servery_trainer.columns import is_date
from servery_trainer.fields import count, known

MISSING_CATEGORY = "missing"
"""What a missing text becomes by default, where it is to be a category of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """What IMPUTE_CONSTANT puts in, by type of column."""

    number: float = 0.0
    text: str = MISSING_CATEGORY
    boolean: bool = False
    date: str = "1970-01-01"

    @classmethod
    def parse(cls, message: pb.Fill, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: The number is not finite in float32, or the date is none.
        """
        if not math.isfinite(message.number) or abs(message.number) > 3e38:
            raise FieldInvalidError(f"{path}.number", message.number, "be a finite float32")
        if message.date and not is_date(message.date):
            raise FieldInvalidError(f"{path}.date", message.date, "be a day such as 2024-02-29")
        default = cls()
        return cls(
            number=message.number,
            text=message.text or default.text,
            boolean=message.boolean,
            date=message.date or default.date,
        )

    def to_proto(self) -> pb.Fill:
        """Render it; `parse` gives an equal value back."""
        return pb.Fill(number=self.number, text=self.text, boolean=self.boolean, date=self.date)


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularTask:
    """Learn the class of a row from its columns."""

    target: str
    features: tuple[str, ...]
    """Empty: every column but the target."""
    missing: pb.MissingPolicy.ValueType
    duplicates: pb.DuplicatePolicy.ValueType
    column_types: Mapping[str, dataset_pb2.ColumnType.ValueType] = field(default_factory=dict)
    """Of the columns that are to be what they do not look like."""
    fill: Fill = Fill()

    name: ClassVar = "tabular_classification"
    dataset_formats: ClassVar = sources.FORMATS

    @classmethod
    def parse(cls, task: pb.TabularClassification, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        features = _features(task.features, task.target, path)
        for column in task.column_types:
            place = f"{path}.column_types[{column}]"
            if column == task.target or (features and column not in features):
                raise FieldInvalidError(place, column, "be one of the features")
            known(task.column_types[column], dataset_pb2.ColumnType, place)
            if not task.column_types[column]:
                raise FieldInvalidError(place, 0, "be a type of column")
        return cls(
            target=task.target,
            features=features,
            missing=_missing(task.missing, path),
            duplicates=_duplicates(task.duplicates, path),
            column_types=dict(task.column_types),
            fill=Fill.parse(task.fill, f"{path}.fill"),
        )

    def to_proto(self) -> pb.TabularClassification:
        """Render it; `parse` gives an equal value back."""
        return pb.TabularClassification(
            target=self.target,
            features=self.features,
            missing=self.missing,
            duplicates=self.duplicates,
            column_types=self.column_types,
            fill=self.fill.to_proto(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """Learn the class of an image from its pixels."""

    images: str
    labels: str
    duplicates: pb.DuplicatePolicy.ValueType

    name: ClassVar = "image_classification"
    dataset_formats: ClassVar = frozenset({dataset_pb2.DATASET_FORMAT_NPZ})

    @classmethod
    def parse(cls, task: pb.ImageClassification, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        images, labels = task.images or "images", task.labels or "labels"
        if images == labels:
            raise FieldInvalidError(f"{path}.labels", labels, "be another array than the images")
        duplicates = _duplicates(task.duplicates, path)
        return cls(images=images, labels=labels, duplicates=duplicates)

    def to_proto(self) -> pb.ImageClassification:
        """Render it; `parse` gives an equal value back."""
        return pb.ImageClassification(
            images=self.images, labels=self.labels, duplicates=self.duplicates
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTask:
    """Learn the class of a text from its words."""

    text: str
    target: str
    missing: pb.MissingPolicy.ValueType
    duplicates: pb.DuplicatePolicy.ValueType
    max_tokens: int
    vocabulary_size: int

    name: ClassVar = "text_classification"
    dataset_formats: ClassVar = sources.FORMATS

    @classmethod
    def parse(cls, task: pb.TextClassification, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed or out of its range.
        """
        if not task.text:
            raise FieldInvalidError(f"{path}.text", "", "name the column that holds the text")
        _features([], task.target, path)
        if task.text == task.target:
            raise FieldInvalidError(f"{path}.text", task.text, "be another column than the target")
        missing = _missing(task.missing, path)
        if missing not in (pb.MISSING_POLICY_REFUSE, pb.MISSING_POLICY_DROP_ROWS):
            name = pb.MissingPolicy.Name(missing)
            raise FieldInvalidError(f"{path}.missing", name, "be REFUSE or DROP_ROWS for texts")
        return cls(
            text=task.text,
            target=task.target,
            missing=missing,
            duplicates=_duplicates(task.duplicates, path),
            max_tokens=count(task.max_tokens, 128, 4096, f"{path}.max_tokens"),
            vocabulary_size=count(task.vocabulary_size, 10_000, 100_000, f"{path}.vocabulary_size"),
        )

    def to_proto(self) -> pb.TextClassification:
        """Render it; `parse` gives an equal value back."""
        return pb.TextClassification(
            text=self.text,
            target=self.target,
            missing=self.missing,
            duplicates=self.duplicates,
            max_tokens=self.max_tokens,
            vocabulary_size=self.vocabulary_size,
        )


Task = TabularTask | ImageTask | TextTask


def parse_task(spec: pb.TrainingSpec, root: str) -> Task:
    """Parse the task of the spec at `root`.

    Raises:
        FieldInvalidError: There is none, or a field of it is malformed.
    """
    match spec.WhichOneof("task"):
        case "tabular_classification" as chosen:
            return TabularTask.parse(spec.tabular_classification, f"{root}.{chosen}")
        case "image_classification" as chosen:
            return ImageTask.parse(spec.image_classification, f"{root}.{chosen}")
        case "text_classification" as chosen:
            return TextTask.parse(spec.text_classification, f"{root}.{chosen}")
        case _:
            known_tasks = " or ".join(task.name for task in (TabularTask, ImageTask, TextTask))
            raise FieldInvalidError(f"{root}.task", "", f"be {known_tasks}")


def _features(features: Sequence[str], target: str, path: str) -> tuple[str, ...]:
    if not target:
        raise FieldInvalidError(f"{path}.target", "", "name the column that holds the class")
    for index, feature in enumerate(features):
        place = f"{path}.features[{index}]"
        if not feature:
            raise FieldInvalidError(place, feature, "name a column")
        if feature == target:
            raise FieldInvalidError(place, feature, "be another column than the target")
        if feature in features[:index]:
            raise FieldInvalidError(place, feature, "be named once")
    return tuple(features)


def _missing(value: pb.MissingPolicy.ValueType, path: str) -> pb.MissingPolicy.ValueType:
    return pb.MissingPolicy.ValueType(known(value, pb.MissingPolicy, f"{path}.missing"))


def _duplicates(value: pb.DuplicatePolicy.ValueType, path: str) -> pb.DuplicatePolicy.ValueType:
    return pb.DuplicatePolicy.ValueType(known(value, pb.DuplicatePolicy, f"{path}.duplicates"))

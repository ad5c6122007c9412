"""What a job is to learn and from what, parsed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import arrays, sources
from servery_trainer.aims import Aim, Goal
from servery_trainer.clipping import Clip, parse_clips
from servery_trainer.columns import is_date
from servery_trainer.fields import columns, count, duplicate_policy, known
from servery_trainer.images import NATIVE, Sizing
from servery_trainer.recommendation_task import RecommendationTask
from servery_trainer.sequence_tasks import ForecastTask, SequenceTask

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
    """Learn something of a row from its columns."""

    aim: Aim
    features: tuple[str, ...]
    """Empty: every column but those of the aim."""
    missing: pb.MissingPolicy.ValueType
    duplicates: pb.DuplicatePolicy.ValueType
    column_types: Mapping[str, dataset_pb2.ColumnType.ValueType] = field(default_factory=dict)
    """Of the columns that are to be what they do not look like."""
    fill: Fill = Fill()
    clip: Mapping[str, Clip] = field(default_factory=dict)
    """Between which values features are held."""
    slice_columns: tuple[str, ...] = ()

    dataset_formats: ClassVar = sources.FORMATS

    @classmethod
    def parse(cls, goal: Goal, task: Any, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        aim = Aim.parse(goal, task, path)
        features = columns(task.features, aim.columns, f"{path}.features")
        for column in task.column_types:
            place = f"{path}.column_types[{column}]"
            if column in aim.columns or (features and column not in features):
                raise FieldInvalidError(place, column, "be one of the features")
            known(task.column_types[column], dataset_pb2.ColumnType, place)
            if not task.column_types[column]:
                raise FieldInvalidError(place, 0, "be a type of column")
        clip = parse_clips(task.clip, f"{path}.clip")
        for column in clip:
            if column in aim.columns or (features and column not in features):
                raise FieldInvalidError(f"{path}.clip[{column}]", column, "be one of the features")
        return cls(
            aim=aim,
            features=features,
            missing=_missing(task.missing, path),
            duplicates=duplicate_policy(task.duplicates, path),
            column_types=dict(task.column_types),
            fill=Fill.parse(task.fill, f"{path}.fill"),
            clip=clip,
            slice_columns=columns(task.slice_columns, aim.columns, f"{path}.slice_columns"),
        )

    @property
    def name(self) -> str:
        """That of the field of the spec."""
        return _TABULAR[self.aim.goal][0]

    def to_proto(self) -> Any:
        """Render it; `parse` gives an equal value back."""
        return _TABULAR[self.aim.goal][1](
            **self.aim.fields(),
            features=self.features,
            missing=self.missing,
            duplicates=self.duplicates,
            column_types=self.column_types,
            fill=self.fill.to_proto(),
            clip={name: clip.to_proto() for name, clip in self.clip.items()},
            slice_columns=self.slice_columns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """Learn something of an image from its pixels."""

    goal: Goal = Goal.CLASS
    images: str
    """The array of images."""
    target: str
    """The array of what they teach."""
    names: tuple[str, ...] = ()
    """Of LABELS: their names; empty to number them."""
    duplicates: pb.DuplicatePolicy.ValueType
    sizing: Sizing = NATIVE

    slice_columns: ClassVar = ()

    @classmethod
    def parse(cls, goal: Goal, task: Any, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        taught = _IMAGE[goal][2]
        images, target = task.images or "images", getattr(task, taught) or "labels"
        if images == target:
            rule = "be another array than the images"
            raise FieldInvalidError(f"{path}.{taught}", target, rule)
        return cls(
            goal=goal,
            images=images,
            target=target,
            names=columns(task.names, (), f"{path}.names") if goal is Goal.LABELS else (),
            duplicates=duplicate_policy(task.duplicates, path),
            sizing=Sizing.parse(task.sizing, f"{path}.sizing"),
        )

    @property
    def name(self) -> str:
        """That of the field of the spec."""
        return _IMAGE[self.goal][0]

    @property
    def dataset_formats(self) -> frozenset[dataset_pb2.DatasetFormat.ValueType]:
        """Those that can hold what is to be learned."""
        has_any_array = frozenset({dataset_pb2.DATASET_FORMAT_NPZ})
        return has_any_array if self.goal is Goal.LABELS else arrays.FORMATS

    def to_proto(self) -> Any:
        """Render it; `parse` gives an equal value back."""
        _, message, taught = _IMAGE[self.goal]
        fields: dict[str, Any] = {taught: self.target}
        if self.goal is Goal.LABELS:
            fields["names"] = self.names
        return message(
            **fields,
            images=self.images,
            duplicates=self.duplicates,
            sizing=self.sizing.to_proto(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTask:
    """Learn something of a text from its words."""

    aim: Aim
    text: str
    missing: pb.MissingPolicy.ValueType
    duplicates: pb.DuplicatePolicy.ValueType
    max_tokens: int
    vocabulary_size: int
    slice_columns: tuple[str, ...] = ()

    dataset_formats: ClassVar = sources.FORMATS

    @classmethod
    def parse(cls, goal: Goal, task: Any, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed or out of its range.
        """
        if not task.text:
            raise FieldInvalidError(f"{path}.text", "", "name the column that holds the text")
        aim = Aim.parse(goal, task, path)
        if task.text in aim.columns:
            raise FieldInvalidError(f"{path}.text", task.text, "be another column than the target")
        missing = _missing(task.missing, path)
        if missing not in (pb.MISSING_POLICY_REFUSE, pb.MISSING_POLICY_DROP_ROWS):
            name = pb.MissingPolicy.Name(missing)
            raise FieldInvalidError(f"{path}.missing", name, "be REFUSE or DROP_ROWS for texts")
        return cls(
            aim=aim,
            text=task.text,
            missing=missing,
            duplicates=duplicate_policy(task.duplicates, path),
            max_tokens=count(task.max_tokens, 128, 4096, f"{path}.max_tokens"),
            vocabulary_size=count(task.vocabulary_size, 10_000, 100_000, f"{path}.vocabulary_size"),
            slice_columns=columns(task.slice_columns, aim.columns, f"{path}.slice_columns"),
        )

    @property
    def name(self) -> str:
        """That of the field of the spec."""
        return _TEXT[self.aim.goal][0]

    def to_proto(self) -> Any:
        """Render it; `parse` gives an equal value back."""
        return _TEXT[self.aim.goal][1](
            **self.aim.fields(),
            text=self.text,
            missing=self.missing,
            duplicates=self.duplicates,
            max_tokens=self.max_tokens,
            vocabulary_size=self.vocabulary_size,
            slice_columns=self.slice_columns,
        )


Task = TabularTask | ImageTask | TextTask | SequenceTask | ForecastTask | RecommendationTask

_TABULAR: Final[dict[Goal, tuple[str, Any]]] = {
    Goal.CLASS: ("tabular_classification", pb.TabularClassification),
    Goal.NUMBER: ("tabular_regression", pb.TabularRegression),
    Goal.LABELS: ("tabular_multi_label", pb.TabularMultiLabel),
    Goal.ANOMALY: ("anomaly_detection", pb.AnomalyDetection),
}
_IMAGE: Final[dict[Goal, tuple[str, Any, str]]] = {
    Goal.CLASS: ("image_classification", pb.ImageClassification, "labels"),
    Goal.NUMBER: ("image_regression", pb.ImageRegression, "values"),
    Goal.LABELS: ("image_multi_label", pb.ImageMultiLabel, "labels"),
}
"""Name and type of the field of the spec, and the field of it with the array that teaches."""

_TEXT: Final[dict[Goal, tuple[str, Any]]] = {
    Goal.CLASS: ("text_classification", pb.TextClassification),
    Goal.NUMBER: ("text_regression", pb.TextRegression),
    Goal.LABELS: ("text_multi_label", pb.TextMultiLabel),
}
"""Name and type of the field of the spec."""


def parse_task(spec: pb.TrainingSpec, root: str) -> Task:
    """Parse the task of the spec at `root`.

    Raises:
        FieldInvalidError: There is none, or a field of it is malformed.
    """
    chosen = spec.WhichOneof("task") or ""
    path, message = f"{root}.{chosen}", getattr(spec, chosen, None)
    match message:
        case pb.SequenceClassification():
            return SequenceTask.parse(message, path)
        case pb.Forecasting():
            return ForecastTask.parse(message, path)
        case pb.Recommendation():
            return RecommendationTask.parse(message, path)
    for goal, (name, _) in _TABULAR.items():
        if chosen == name:
            return TabularTask.parse(goal, message, path)
    for goal, (name, *_) in _IMAGE.items():
        if chosen == name:
            return ImageTask.parse(goal, message, path)
    for goal, (name, _) in _TEXT.items():
        if chosen == name:
            return TextTask.parse(goal, message, path)
    known_tasks = " or ".join(field.name for field in spec.DESCRIPTOR.oneofs_by_name["task"].fields)
    raise FieldInvalidError(f"{root}.task", "", f"be {known_tasks}")


def has_classes(task: Task) -> bool:
    """Tell whether rows are of classes, or have labels, and do not teach numbers."""
    match task:
        case ForecastTask() | RecommendationTask():
            return False
        case TabularTask() | TextTask():
            return task.aim.goal not in (Goal.NUMBER, Goal.ANOMALY)
        case ImageTask():
            return task.goal is not Goal.NUMBER
        case _:
            return True


def tells_accuracy(task: Task) -> bool:
    """Tell whether the epochs of a job say an accuracy: whether each row is of one class."""
    match task:
        case TabularTask() | TextTask():
            return task.aim.goal is Goal.CLASS
        case ImageTask():
            return task.goal is Goal.CLASS
        case _:
            return has_classes(task)


def _missing(value: pb.MissingPolicy.ValueType, path: str) -> pb.MissingPolicy.ValueType:
    return pb.MissingPolicy.ValueType(known(value, pb.MissingPolicy, f"{path}.missing"))

"""What a job is to learn and from what, parsed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final, Self

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import arrays, sources
from servery_trainer.clipping import Clip, parse_clips
from servery_trainer.columns import is_date
from servery_trainer.fields import count, known
from servery_trainer.images import NATIVE, Sizing
from servery_trainer.recommendation_task import RecommendationTask

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


class Goal(Enum):
    """What is to be told of a row."""

    CLASS = "classification"
    NUMBER = "regression"
    LABELS = "multi_label"
    ANOMALY = "anomaly_detection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What is to be told of a row of a table, and the columns that teach it."""

    goal: Goal
    columns: tuple[str, ...]
    """One, but for LABELS without a separator; or none, for ANOMALY."""
    separator: str = ""
    """Of LABELS: what stands between those of a cell. Empty: each column is a label."""
    normal: str = ""
    """Of ANOMALY: what the column says of rows that are none."""
    false_alarm_rate: float = 0.0
    """Of ANOMALY: share of normal rows that may be called one, over 0."""

    @classmethod
    def parse(cls, goal: Goal, task: Any, path: str) -> Self:
        """Parse the fields of the message at `path` that say what is to be told.

        Raises:
            FieldInvalidError: No column is named, one twice, or more than one with a separator; or
                the normal rows are not told, or the rate is out of its range.
        """
        if goal is Goal.ANOMALY:
            return cls._parse_anomaly(task, path)
        if goal is not Goal.LABELS:
            if not task.target:
                what = "class" if goal is Goal.CLASS else "number"
                raise FieldInvalidError(f"{path}.target", "", f"name the column with the {what}")
            return cls(goal=goal, columns=(task.target,))
        if not task.targets:
            raise FieldInvalidError(f"{path}.targets", "", "name the columns with the labels")
        _columns(task.targets, (), f"{path}.targets")
        if task.separator and len(task.targets) > 1:
            rule = "name one column, the one that lists labels; or leave the separator out"
            raise FieldInvalidError(f"{path}.targets[1]", task.targets[1], rule)
        return cls(goal=goal, columns=tuple(task.targets), separator=task.separator)

    @classmethod
    def _parse_anomaly(cls, task: pb.AnomalyDetection, path: str) -> Self:
        if bool(task.label) != bool(task.normal):
            rule = "say what the label is of normal rows" if task.label else "be empty: no label"
            raise FieldInvalidError(f"{path}.normal", task.normal, rule)
        rate = task.false_alarm_rate if task.HasField("false_alarm_rate") else 0.01
        if not 0 < rate <= 0.5:
            raise FieldInvalidError(f"{path}.false_alarm_rate", rate, "be over 0 and at most 0.5")
        columns = (task.label,) if task.label else ()
        return cls(goal=Goal.ANOMALY, columns=columns, normal=task.normal, false_alarm_rate=rate)

    def fields(self) -> dict[str, Any]:
        """Render it as the fields it was parsed from."""
        if self.goal is Goal.ANOMALY:
            label = "".join(self.columns)
            rate = self.false_alarm_rate
            return {"label": label, "normal": self.normal, "false_alarm_rate": rate}
        if self.goal is Goal.LABELS:
            return {"targets": self.columns, "separator": self.separator}
        return {"target": self.columns[0]}


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
        features = _columns(task.features, aim.columns, f"{path}.features")
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
            duplicates=_duplicates(task.duplicates, path),
            column_types=dict(task.column_types),
            fill=Fill.parse(task.fill, f"{path}.fill"),
            clip=clip,
            slice_columns=_columns(task.slice_columns, aim.columns, f"{path}.slice_columns"),
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
    """Learn the class of an image from its pixels."""

    images: str
    labels: str
    duplicates: pb.DuplicatePolicy.ValueType
    sizing: Sizing = NATIVE

    name: ClassVar = "image_classification"
    dataset_formats: ClassVar = arrays.FORMATS
    slice_columns: ClassVar = ()

    @classmethod
    def parse(cls, task: pb.ImageClassification, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        images, labels = task.images or "images", task.labels or "labels"
        if images == labels:
            raise FieldInvalidError(f"{path}.labels", labels, "be another array than the images")
        return cls(
            images=images,
            labels=labels,
            duplicates=_duplicates(task.duplicates, path),
            sizing=Sizing.parse(task.sizing, f"{path}.sizing"),
        )

    def to_proto(self) -> pb.ImageClassification:
        """Render it; `parse` gives an equal value back."""
        return pb.ImageClassification(
            images=self.images,
            labels=self.labels,
            duplicates=self.duplicates,
            sizing=self.sizing.to_proto(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceTask:
    """Learn the class of a sequence of numbers."""

    sequences: str
    labels: str
    duplicates: pb.DuplicatePolicy.ValueType

    name: ClassVar = "sequence_classification"
    dataset_formats: ClassVar = frozenset({dataset_pb2.DATASET_FORMAT_NPZ})
    slice_columns: ClassVar = ()

    @classmethod
    def parse(cls, task: pb.SequenceClassification, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        sequences, labels = task.sequences or "sequences", task.labels or "labels"
        if sequences == labels:
            rule = "be another array than the sequences"
            raise FieldInvalidError(f"{path}.labels", labels, rule)
        duplicates = _duplicates(task.duplicates, path)
        return cls(sequences=sequences, labels=labels, duplicates=duplicates)

    def to_proto(self) -> pb.SequenceClassification:
        """Render it; `parse` gives an equal value back."""
        return pb.SequenceClassification(
            sequences=self.sequences, labels=self.labels, duplicates=self.duplicates
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastTask:
    """Learn what comes next in a time series."""

    time: str
    target: str
    covariates: tuple[str, ...]
    series: str
    """Empty: all rows are one series."""
    window: int
    horizon: int
    season: int

    name: ClassVar = "forecasting"
    dataset_formats: ClassVar = sources.FORMATS
    duplicates: ClassVar = pb.DUPLICATE_POLICY_KEEP
    slice_columns: ClassVar = ()

    @classmethod
    def parse(cls, task: pb.Forecasting, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed or out of its range.
        """
        named = {"time": task.time, "target": task.target, "series": task.series}
        for name in ("time", "target"):
            if not named[name]:
                raise FieldInvalidError(f"{path}.{name}", "", "name a column")
        for one, other in (("target", "time"), ("series", "time"), ("series", "target")):
            if named[one] == named[other]:
                rule = f"be another column than the {other}"
                raise FieldInvalidError(f"{path}.{one}", named[one], rule)
        window = count(task.window, 24, 4096, f"{path}.window")
        season = count(task.season, 1, window, f"{path}.season")
        return cls(
            **named,
            covariates=_columns(task.covariates, tuple(named.values()), f"{path}.covariates"),
            window=window,
            horizon=count(task.horizon, 1, 1024, f"{path}.horizon"),
            season=season,
        )

    def to_proto(self) -> pb.Forecasting:
        """Render it; `parse` gives an equal value back."""
        return pb.Forecasting(
            time=self.time,
            target=self.target,
            covariates=self.covariates,
            series=self.series,
            window=self.window,
            horizon=self.horizon,
            season=self.season,
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
            duplicates=_duplicates(task.duplicates, path),
            max_tokens=count(task.max_tokens, 128, 4096, f"{path}.max_tokens"),
            vocabulary_size=count(task.vocabulary_size, 10_000, 100_000, f"{path}.vocabulary_size"),
            slice_columns=_columns(task.slice_columns, aim.columns, f"{path}.slice_columns"),
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
        case pb.ImageClassification():
            return ImageTask.parse(message, path)
        case pb.SequenceClassification():
            return SequenceTask.parse(message, path)
        case pb.Forecasting():
            return ForecastTask.parse(message, path)
        case pb.Recommendation():
            return RecommendationTask.parse(message, path)
    for goal, (name, _) in _TABULAR.items():
        if chosen == name:
            return TabularTask.parse(goal, message, path)
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
        case _:
            return True


def _columns(names: Sequence[str], others: Sequence[str], field: str) -> tuple[str, ...]:
    """Return names of columns: each given, once, and none of `others`, which are the targets."""
    for index, name in enumerate(names):
        place = f"{field}[{index}]"
        if not name:
            raise FieldInvalidError(place, name, "name a column")
        if name in others:
            raise FieldInvalidError(place, name, "be another column than the target")
        if name in names[:index]:
            raise FieldInvalidError(place, name, "be named once")
    return tuple(names)


def _missing(value: pb.MissingPolicy.ValueType, path: str) -> pb.MissingPolicy.ValueType:
    return pb.MissingPolicy.ValueType(known(value, pb.MissingPolicy, f"{path}.missing"))


def _duplicates(value: pb.DuplicatePolicy.ValueType, path: str) -> pb.DuplicatePolicy.ValueType:
    return pb.DuplicatePolicy.ValueType(known(value, pb.DuplicatePolicy, f"{path}.duplicates"))

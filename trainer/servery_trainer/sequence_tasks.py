"""The tasks of sequences and of time series, parsed."""

from dataclasses import dataclass
from typing import ClassVar, Self

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import sources
from servery_trainer.fields import columns, count, duplicate_policy


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
        duplicates = duplicate_policy(task.duplicates, path)
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
            covariates=columns(task.covariates, tuple(named.values()), f"{path}.covariates"),
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

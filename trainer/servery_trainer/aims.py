"""What is to be told of the rows of a table, parsed."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.fields import columns


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
        columns(task.targets, (), f"{path}.targets")
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

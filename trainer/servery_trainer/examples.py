"""From a stored file to the cleaned rows a job learns from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2, training_pb2
from servery.trainer.v1.dataset_pb2 import ColumnType
from servery_rpc.errors import FieldInvalidError
from servery_trainer import sources
from servery_trainer.aims import Aim, Goal
from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.fitting import most_features
from servery_trainer.interactions import InteractionReader, Interactions
from servery_trainer.label_sets import LabelColumnsReader, LabelListReader
from servery_trainer.networks import Dense
from servery_trainer.normality import Normality, NormalityReader
from servery_trainer.quantities import QuantityReader
from servery_trainer.recommendation_task import RecommendationTask
from servery_trainer.rows import Rows, are_missing, read_images, read_sequences, read_table
from servery_trainer.sequence_tasks import ForecastTask, SequenceTask
from servery_trainer.sizes import check_size
from servery_trainer.spec import ROOT, Spec
from servery_trainer.split import Split
from servery_trainer.targets import ClassReader, Target, TargetReader
from servery_trainer.tasks import ImageTask, TabularTask, TextTask
from servery_trainer.texts import FIRST_WORD
from servery_trainer.windows import read_windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The rows that are left after cleaning.

    Shape suffixes: B rows.
    """

    inputs: Mapping[str, NDArray[Any]]
    """See `Rows`. Missing values only where they are to be imputed."""

    types: Mapping[str, ColumnType.ValueType]
    """See `Rows`."""

    target: Target
    """See `Rows`."""

    split: Split
    """How the rows are divided."""

    aside: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    """See `Rows`."""

    row_numbers_B: NDArray[np.int64]
    """`Rows.numbers_B`."""

    total: int
    """Rows in the file."""

    dropped_missing: int
    """Rows left out for missing values."""

    dropped_duplicates: int
    """Rows left out because they repeat an earlier one."""

    kept_duplicates: int
    """Rows left in although they repeat an earlier one."""

    def take(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the inputs of these rows, given as indices."""
        return {name: values[rows] for name, values in self.inputs.items()}


def load_examples(spec: Spec, path: Path) -> Examples:
    """Read a dataset as `spec` asks, check all of it and clean it.

    Args:
        spec: What to read and what to do with missing values and duplicates.
        path: A file that `datasets.inspect` accepted in the format of the task.

    Raises:
        DatasetInvalidError: The data cannot be used as asked.
        FieldInvalidError: The network would be too large for rows of this shape.
    """
    aside, uncounted = _aside(spec), 0
    match spec.task:
        case TabularTask() as task:
            rows = read_table(
                _features(spec, task, path), _reader(task.aim), task.column_types, path, aside
            )
            _check_clip(task, rows)
            total = len(rows.numbers_B)
            rows = _without_missing(rows, task.missing)
        case TextTask() as task:
            types = {task.text: dataset_pb2.COLUMN_TYPE_TEXT}
            rows = read_table((task.text,), _reader(task.aim), types, path, aside)
            total = len(rows.numbers_B)
            rows = _without_missing(rows, task.missing)
        case ImageTask() as task:
            rows = read_images(task, path)
            total = len(rows.numbers_B)
        case RecommendationTask() as task:
            reader = InteractionReader(task)
            rows = read_table((task.user,), reader, {task.user: dataset_pb2.COLUMN_TYPE_TEXT}, path)
            total = len(rows.numbers_B)
            rows = rows.keep(reader.counted_B(total))
            uncounted = total - len(rows.numbers_B)
        case SequenceTask() as task:
            rows = read_sequences(task, path)
            total = len(rows.numbers_B)
        case ForecastTask() as task:
            rows = read_windows(task, path)
            total = len(rows.numbers_B)
    dropped_missing = total - len(rows.numbers_B) - uncounted
    repeats_B = _repeats(rows, task.duplicates)
    repeated = int(repeats_B.sum())
    kept = task.duplicates == training_pb2.DUPLICATE_POLICY_KEEP
    if not kept:
        rows = rows.keep(~repeats_B)
    rows.target.check()
    if isinstance(task, TextTask):  # the most it may become: the words are yet to be learned
        width = task.vocabulary_size if isinstance(spec.family, Dense) else task.max_tokens
        vocabulary = task.vocabulary_size + FIRST_WORD
        check_size(spec.networks, (width,), rows.target.width, vocabulary)
    elif isinstance(rows.target, Interactions):
        _check_k(rows.target)
        check_size(spec.networks, (1,), rows.target.width, rows.target.user_count + 1)
    else:
        check_size(spec.networks, _feature_shape(rows), rows.target.width)
    return Examples(
        inputs=rows.inputs,
        types=rows.types,
        target=rows.target,
        split=_divide(spec, rows),
        aside={name: rows.aside[name] for name in spec.task.slice_columns},
        row_numbers_B=rows.numbers_B,
        total=total,
        dropped_missing=dropped_missing,
        dropped_duplicates=0 if kept else repeated,
        kept_duplicates=repeated if kept else 0,
    )


def _divide(spec: Spec, rows: Rows) -> Split:
    """Divide rows as asked; anomalies teach nothing, so all of them are judged."""
    if isinstance(rows.target, Normality):
        normal = rows.keep(~rows.target.anomalous_B)
        _require_variety(normal)
        return rows.target.place(_divide_alike(spec, normal))
    if isinstance(rows.target, Interactions):
        seed = spec.split.seed
        return rows.target.divide(spec.training.seed if seed is None else seed)
    if rows.spans is not None:
        return spec.split.divide_spans(rows.spans)
    return _divide_alike(spec, rows)


def _divide_alike(spec: Spec, rows: Rows) -> Split:
    return spec.split.divide(
        rows.target.strata_B,
        rows.aside.get(spec.split.column),
        rows.numbers_B,
        spec.training.seed,
    )


def _require_variety(rows: Rows) -> None:
    """Refuse rows that are all alike.

    Raises:
        DatasetInvalidError: They are.
    """
    if all((values == values[0]).all() for values in rows.inputs.values()):
        raise DatasetInvalidError(
            Problem.CONSTANT_FEATURES,
            f"no feature differs between the {len(rows.numbers_B)} normal rows; name features that"
            " do",
            column=next(iter(rows.inputs)),
        )


def _check_k(target: Interactions) -> None:
    if target.task.k > target.width:
        rule = f"be at most {target.width}, the number of items"
        raise FieldInvalidError(f"{ROOT}.{target.task.name}.k", target.task.k, rule)


def _features(spec: Spec, task: TabularTask, path: Path) -> tuple[str, ...]:
    """Return those that are named, or else all columns that serve nothing else.

    Raises:
        DatasetInvalidError: There are none.
    """
    if task.features or not spec.split.column:
        return task.features
    others = {*task.aim.columns, spec.split.column}
    found = tuple(name for name in sources.read_header(path) if name not in others)
    if not found:
        raise DatasetInvalidError(
            Problem.MISSING_COLUMN,
            f"beside the target the file holds no column but {shown(spec.split.column)!r}, which"
            " divides the rows; name it among the features if it shall be learned from",
            column=spec.split.column,
        )
    return found


def _aside(spec: Spec) -> tuple[str, ...]:
    divided_by = (spec.split.column,) if spec.split.column else ()
    return tuple(dict.fromkeys((*spec.task.slice_columns, *divided_by)))


def _check_clip(task: TabularTask, rows: Rows) -> None:
    for name in task.clip:
        if rows.types.get(name) != dataset_pb2.COLUMN_TYPE_NUMERIC:
            place = f"{ROOT}.{task.name}.clip[{name}]"
            raise FieldInvalidError(place, name, "be a feature that is NUMERIC")


def _reader(aim: Aim) -> TargetReader:
    match aim.goal:
        case Goal.CLASS:
            return ClassReader(aim.columns[0])
        case Goal.NUMBER:
            return QuantityReader(aim.columns[0])
        case Goal.LABELS if aim.separator:
            return LabelListReader(aim.columns[0], aim.separator)
        case Goal.LABELS:
            return LabelColumnsReader(aim.columns)
        case Goal.ANOMALY:
            return NormalityReader(aim.columns, aim.normal, aim.false_alarm_rate)


def _feature_shape(rows: Rows) -> tuple[int, ...]:
    first = next(iter(rows.inputs.values()))
    if first.ndim > 2:
        return first.shape[1:]
    return (sum(most_features(rows.types[name], rows.inputs[name]) for name in rows.inputs),)


def _without_missing(rows: Rows, policy: training_pb2.MissingPolicy.ValueType) -> Rows:
    for name, values in rows.inputs.items():
        if are_missing(values).all():
            raise missing_value(1, name, "no row has a value in it; leave the column out")
    if policy not in (training_pb2.MISSING_POLICY_REFUSE, training_pb2.MISSING_POLICY_DROP_ROWS):
        return rows
    missing_B = np.zeros(len(rows.numbers_B), np.bool_)
    for values in rows.inputs.values():
        missing_B |= are_missing(values[:, 0])
    if policy == training_pb2.MISSING_POLICY_DROP_ROWS:
        return rows.keep(~missing_B)
    if missing_B.any():
        row = int(missing_B.argmax())
        column = next(
            name for name, values in rows.inputs.items() if are_missing(values[row]).any()
        )
        raise missing_value(
            int(rows.numbers_B[row]),
            column,
            "fill the cell in, or choose to drop such rows or to impute a value",
        )
    return rows


def _repeats(rows: Rows, policy: training_pb2.DuplicatePolicy.ValueType) -> NDArray[np.bool_]:
    """Mark rows that repeat an earlier one in every input and the target.

    Raises:
        DatasetInvalidError: There is one, and the policy is to refuse.
    """
    first: dict[bytes, int] = {}
    repeats_B = np.zeros(len(rows.numbers_B), np.bool_)
    numbers = [values for values in rows.inputs.values() if values.dtype != np.object_]
    words = [values for values in rows.inputs.values() if values.dtype == np.object_]
    for start in range(0, len(rows.numbers_B), 1024):
        parts = [values[start : start + 1024] for values in (*numbers, rows.target.values)]
        # adding 0 makes -0.0 and 0.0 the same bytes
        flat = [np.ascontiguousarray(part.reshape(len(part), -1) + 0) for part in parts]
        block = np.concatenate([part.view(np.uint8) for part in flat], axis=1)
        said = zip(*(values[start : start + 1024, 0] for values in words), strict=True)
        for offset, row in enumerate(block):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16)
            digest.update("\0".join(next(said, ())).encode())  # which no text holds
            index = start + offset
            earlier = first.setdefault(digest.digest(), index)
            if earlier == index:
                continue
            repeats_B[index] = True
            if policy == training_pb2.DUPLICATE_POLICY_REFUSE:
                raise _duplicate(int(rows.numbers_B[earlier]), int(rows.numbers_B[index]))
    return repeats_B


def _duplicate(earlier: int, later: int) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.DUPLICATE_ROW,
        f"row {later} repeats row {earlier}; remove it, or choose to drop or to keep duplicates",
        row=later,
    )

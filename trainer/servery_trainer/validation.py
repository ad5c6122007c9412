"""Reports on data before they are trained on: what is likely to spoil a model, and where."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import DatasetName
from servery_trainer import findings, leaks, sources, tables
from servery_trainer.arrays import FORMATS as ARRAY_FORMATS
from servery_trainer.arrays import Arrays, open_arrays
from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.examined import Column, Examined, examine
from servery_trainer.fields import known
from servery_trainer.split import (
    MIN_ROWS_PER_CLASS,
    Split,
    SplitPolicy,
    no_time,
    parse_fraction,
    parse_times,
)

_LABELS: Final = "labels"
_MOST_CLASSES: Final = 50  # that are numbers; more of them are quantities


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is asked about a dataset."""

    name: DatasetName
    target: str
    """Empty: nothing about a target."""
    features: tuple[str, ...]
    """Empty: all columns but the target and that of the split."""
    column_types: Mapping[str, pb.ColumnType.ValueType]
    ranges: Mapping[str, pb.Range]
    split: SplitPolicy
    """STRATIFIED with a column: when rows happened."""

    @classmethod
    def parse(cls, request: pb.ValidateDatasetRequest) -> Self:
        """Parse a request.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        method = known(request.split_method, pb.SplitMethod, "split_method")
        if method != pb.SPLIT_METHOD_STRATIFIED and not request.split_column:
            raise FieldInvalidError("split_column", "", "name the column of the groups or times")
        for column, kind in request.column_types.items():
            if kind not in pb.ColumnType.values()[1:]:
                raise FieldInvalidError(f"column_types[{column}]", kind, "be a type of column")
        if request.target and request.target in request.features:
            raise FieldInvalidError("features", request.target, "not hold the target")
        validation = parse_fraction(request, "validation_fraction")
        test = parse_fraction(request, "test_fraction")
        if validation + test >= 1:
            raise FieldInvalidError("test_fraction", test, "leave rows to train on")
        return cls(
            name=DatasetName.parse(request.name),
            target=request.target,
            features=tuple(dict.fromkeys(request.features)),
            column_types=dict(request.column_types),
            ranges=dict(request.ranges),
            split=SplitPolicy(
                method=pb.SplitMethod.ValueType(method),
                column=request.split_column,
                validation_fraction=validation,
                test_fraction=test,
                seed=request.seed,
            ),
        )


def validate(
    asked: Validation,
    format: pb.DatasetFormat.ValueType,  # noqa: A002
    path: Path,
) -> pb.ValidateDatasetResponse:
    """Report on the file of a dataset; see `Validator.report` for what it raises."""
    if format in ARRAY_FORMATS:
        return _of_arrays(asked, path)
    return _of_table(asked, path)


def _of_table(asked: Validation, path: Path) -> pb.ValidateDatasetResponse:
    header = sources.read_header(path)
    apart = (asked.target, asked.split.column)
    features = asked.features or tuple(name for name in header if name not in apart)
    if not features:
        raise _nothing_to_learn_from(column=asked.target)
    names = list(dict.fromkeys(name for name in (*features, *apart) if name))
    for name in asked.ranges:
        if name not in names:
            raise tables.missing_column(name, names)
    table = examine(path, names, asked.column_types, target=asked.target, kept=asked.split.column)
    found = list(_of_columns(asked, table, features))
    inputs_B = findings.mix(*(table.columns[name].bits_B for name in features))
    target = table.columns.get(asked.target)
    found += findings.of_rows(inputs_B, target.bits_B if target else None)
    whole_B = findings.mix(inputs_B, target.bits_B) if target else inputs_B
    found += _of_split(asked.split, whole_B, target, table)
    return pb.ValidateDatasetResponse(findings=findings.ordered(found), row_count=table.row_count)


def _of_columns(
    asked: Validation, table: Examined, features: tuple[str, ...]
) -> Iterator[pb.Finding]:
    target = table.columns.get(asked.target)
    for name, column in table.columns.items():
        yield from findings.of_column(
            column, is_target=column is target, allowed=asked.ranges.get(name)
        )
        if target is not None and name in features:
            score = leaks.score(column, target)
            if score > leaks.GIVEN_AWAY:
                yield findings.finding(
                    pb.FINDING_KIND_TARGET_LEAK,
                    findings.WARNING,
                    f"this column alone tells the target (score {score:.3f} on rows it was not"
                    " fitted on): is it known before the target is? else leave it out",
                    column=name,
                    score=score,
                )
    if target is not None and _is_class(target):
        present_B = target.present_B
        yield from findings.of_classes(target.values_B[present_B], table.labels, target.name)


def _is_class(target: Column) -> bool:
    """Tell whether a target looks like classes: text, or few different numbers."""
    if not target.numeric:
        return True
    numbers = target.values_B[target.present_B]
    return bool((numbers == np.round(numbers)).all()) and len(np.unique(numbers)) <= _MOST_CLASSES


def _of_split(
    policy: SplitPolicy, whole_B: NDArray[np.int64], target: Column | None, table: Examined
) -> Iterator[pb.Finding]:
    kept_B = np.ones(len(whole_B), np.bool_) if target is None else target.present_B
    rows = np.flatnonzero(kept_B)
    strata_B = np.zeros(len(rows), np.int64)
    if target is not None and _is_class(target):
        _, strata_B = np.unique(target.values_B[rows], return_inverse=True)
    keys_B = None if table.texts_B is None else table.texts_B[rows]
    split = _divide(policy, strata_B, keys_B, rows)
    if split is None:
        return
    split = Split(rows[split.train], rows[split.validation], rows[split.test])
    yield from findings.across_split(whole_B, split)
    if keys_B is not None and policy.method != pb.SPLIT_METHOD_GROUP:
        known_B, wrong = parse_times(keys_B)
        if wrong is not None:
            raise no_time(int(rows[wrong]) + 1, policy.column, keys_B[wrong])
        times_B = np.full(len(whole_B), np.nan)
        times_B[rows] = known_B
        yield from findings.of_times(times_B, split, policy.column)


def _divide(
    policy: SplitPolicy,
    strata_B: NDArray[np.int64],
    keys_B: NDArray[np.object_] | None,
    rows: NDArray[np.int64],
) -> Split | None:
    """Divide rows as training would; None if it would refuse to for a reason found already."""
    if not len(rows) or np.bincount(strata_B).min() < MIN_ROWS_PER_CLASS:
        return None
    if policy.method != pb.SPLIT_METHOD_STRATIFIED:
        return policy.divide(strata_B, keys_B, rows + 1, seed=0)
    if keys_B is not None and (keys_B == "").any():
        row = int(rows[(keys_B == "").argmax()]) + 1
        raise missing_value(row, policy.column, "say when the row happened")
    return policy.divide(strata_B, None, rows + 1, seed=0)


def _of_arrays(asked: Validation, path: Path) -> pb.ValidateDatasetResponse:
    for field, value in (
        ("column_types", asked.column_types),
        ("ranges", asked.ranges),
        ("split_column", asked.split.column),
    ):
        if value:
            raise FieldInvalidError(field, value, "be empty for a file of arrays")
    with open_arrays(path) as arrays:
        wanted = asked.target or (_LABELS if _LABELS in arrays.headers else "")
        for name in (*asked.features, wanted):
            if name and name not in arrays.headers:
                raise DatasetInvalidError(
                    Problem.MISSING_ARRAY,
                    f"there is no array {shown(name)!r}; the file has {', '.join(arrays.headers)}",
                    array=name,
                )
        features = asked.features or tuple(name for name in arrays.headers if name != wanted)
        if not features:
            raise _nothing_to_learn_from(array=wanted)
        found: list[pb.Finding] = []
        inputs = {name: _row_codes(arrays, name) for name in features}
        for name, codes_B in inputs.items():
            found += _of_array(name, codes_B)
        inputs_B = findings.mix(*inputs.values())
        rows, target_B = len(inputs_B), None
        if wanted:
            values = arrays.load(wanted)
            if values.ndim == 1:
                target_B = _row_codes(arrays, wanted)
                labels = dict(zip(target_B.tolist(), map(str, values.tolist()), strict=True))
                found += findings.of_classes(target_B, labels, wanted)
    found += findings.of_rows(inputs_B, target_B)
    whole_B = inputs_B if target_B is None else findings.mix(inputs_B, target_B)
    _, strata_B = np.unique(whole_B * 0 if target_B is None else target_B, return_inverse=True)
    if split := _divide(asked.split, strata_B, None, np.arange(rows)):
        found += findings.across_split(whole_B, split)
    return pb.ValidateDatasetResponse(findings=findings.ordered(found), row_count=rows)


def _nothing_to_learn_from(
    *, column: str | None = None, array: str | None = None
) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MISSING_ARRAY if array else Problem.MISSING_COLUMN,
        "the file holds nothing beside the target; there is nothing to learn from",
        column=column,
        array=array,
    )


def _row_codes(arrays: Arrays, name: str) -> NDArray[np.int64]:
    """Return a number for each row of an array, the same for the same values."""
    if -1 in arrays.headers[name].shape:
        pieces: Any = arrays.chunks(name)  # images of several sizes come one by one
    else:
        pieces = arrays.load(name)
    return np.array([hash(piece.tobytes()) for piece in pieces], np.int64)


def _of_array(name: str, codes_B: NDArray[np.int64]) -> Iterator[pb.Finding]:
    if len(codes_B) > 1 and (codes_B == codes_B[0]).all():
        yield findings.finding(
            pb.FINDING_KIND_CONSTANT,
            findings.WARNING,
            "every row is the same: there is nothing to learn from it",
            column=name,
        )

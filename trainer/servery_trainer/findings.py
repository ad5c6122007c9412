"""What single columns, and rows as wholes, show that is likely to spoil a model.

Shape suffixes: B rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer.data_errors import shown
from servery_trainer.examined import Column
from servery_trainer.split import MIN_ROWS_PER_CLASS, Split

INFO: Final = pb.FINDING_SEVERITY_INFO
WARNING: Final = pb.FINDING_SEVERITY_WARNING
ERROR: Final = pb.FINDING_SEVERITY_ERROR

_MOST_ROWS: Final = 10
_MOSTLY: Final = 0.5
_NEARLY_ALL: Final = 0.95
_FEWEST_FOR_SHARES: Final = 20
_FAR: Final = 10.0
_IMBALANCE: Final = 10


def finding(
    kind: pb.FindingKind.ValueType,
    severity: pb.FindingSeverity.ValueType,
    message: str,
    *,
    column: str = "",
    rows: Iterable[int] = (),
    **figures: float,
) -> pb.Finding:
    """Make a finding.

    Args:
        kind: What it is.
        severity: How bad it is.
        message: What it means and what to do, for people.
        column: Where.
        rows: Indices of rows; the first of them are shown.
        figures: What was counted or measured.
    """
    numbers = [int(row) + 1 for _, row in zip(range(_MOST_ROWS), rows, strict=False)]
    return pb.Finding(
        kind=kind, severity=severity, column=column, rows=numbers, figures=figures, message=message
    )


def of_column(column: Column, *, is_target: bool, allowed: pb.Range | None) -> Iterator[pb.Finding]:
    """Yield what a column shows by itself."""
    present_B = column.present_B
    yield from _wrong_type(column, len(present_B))
    absent_B = ~present_B
    absent_B[column.wrong_rows] = False
    yield from _missing(column.name, absent_B, is_target=is_target)
    values = column.values_B[present_B]
    if not len(values):
        return
    distinct = len(np.unique(values))
    share = distinct / len(values)
    if distinct == 1:
        yield finding(
            pb.FINDING_KIND_CONSTANT,
            ERROR if is_target else WARNING,
            "every value is the same: there is nothing to learn; "
            + ("choose another target" if is_target else "leave the column out of the features"),
            column=column.name,
            share=float(absent_B.mean()),
        )
    elif (
        not is_target
        and share > _NEARLY_ALL
        and len(values) >= _FEWEST_FOR_SHARES
        and (not column.numeric or _counts_up(values))
    ):
        yield finding(
            pb.FINDING_KIND_NEAR_UNIQUE,
            WARNING,
            "nearly every row has a value of its own, like a name or a number of the row: a model"
            " would learn rows by heart; leave the column out of the features, unless it is text to"
            " be learned by its words",
            column=column.name,
            distinct=distinct,
            share=share,
        )
    if column.numeric:
        yield from _out_of_range(column, values, allowed)


def _wrong_type(column: Column, rows: int) -> Iterator[pb.Finding]:
    if not len(column.wrong_rows):
        return
    name = pb.ColumnType.Name(column.kind).removeprefix("COLUMN_TYPE_")
    yield finding(
        pb.FINDING_KIND_WRONG_TYPE,
        ERROR,
        f"not {name}, as the column is: training refuses such cells; correct or empty them, or"
        " declare the column TEXT",
        column=column.name,
        rows=column.wrong_rows,
        count=len(column.wrong_rows),
        share=len(column.wrong_rows) / rows,
    )


def _missing(column: str, absent_B: NDArray[np.bool_], *, is_target: bool) -> Iterator[pb.Finding]:
    count = int(absent_B.sum())
    if not count:
        return
    share = count / len(absent_B)
    if is_target:
        severity, advice = ERROR, "a row without a target teaches nothing; remove it or fill it in"
    elif share == 1:
        severity, advice = ERROR, "no row has a value; leave the column out of the features"
    elif share > _MOSTLY:
        severity, advice = WARNING, "most values are missing; is the column worth keeping?"
    else:
        severity, advice = INFO, "say whether to drop such rows or to impute a value"
    yield finding(
        pb.FINDING_KIND_MISSING,
        severity,
        f"{count} values are missing: {advice}",
        column=column,
        rows=np.flatnonzero(absent_B)[:_MOST_ROWS],
        count=count,
        share=share,
    )


def _counts_up(values: NDArray[np.float64]) -> bool:
    """Tell whether numbers are those of rows: whole ones, none twice, in order."""
    steps = np.diff(values)
    return bool((values == np.round(values)).all() and ((steps > 0).all() or (steps < 0).all()))


def _out_of_range(
    column: Column, values: NDArray[np.float64], allowed: pb.Range | None
) -> Iterator[pb.Finding]:
    if allowed is not None:
        low = allowed.minimum if allowed.HasField("minimum") else -np.inf
        high = allowed.maximum if allowed.HasField("maximum") else np.inf
        severity, what = WARNING, "outside of the range asked for: correct them, or clip the column"
    else:
        quarter, three_quarters = np.percentile(values, [25, 75])
        reach = _FAR * (three_quarters - quarter)
        if not reach:
            return
        low, high = quarter - reach, three_quarters + reach
        severity, what = INFO, "very far from all others: are they errors? clip the column if so"
    outside_B = (column.values_B < low) | (column.values_B > high)
    count = int(outside_B.sum())
    if count:
        yield finding(
            pb.FINDING_KIND_OUT_OF_RANGE,
            severity,
            f"{count} values are {what}",
            column=column.name,
            rows=np.flatnonzero(outside_B)[:_MOST_ROWS],
            count=count,
            minimum=float(low),
            maximum=float(high),
        )


def of_classes(
    codes_B: NDArray[Any], labels: Mapping[int, str], column: str
) -> Iterator[pb.Finding]:
    """Yield what the sizes of the classes show.

    Args:
        codes_B: The class of each row that has one.
        labels: The name of each.
        column: Where they are from.
    """
    classes, first, counts = np.unique(codes_B, return_index=True, return_counts=True)
    if len(classes) < 2:
        return  # CONSTANT says so
    fewest, most = int(counts.min()), int(counts.max())
    rarest = codes_B[first[counts == fewest].min()]
    name = shown(labels.get(int(rarest), f"{rarest:g}"))
    figures = {"fewest": fewest, "most": most, "classes": len(classes)}
    rows = np.flatnonzero(codes_B == rarest)[:_MOST_ROWS]
    if fewest < MIN_ROWS_PER_CLASS:
        yield finding(
            pb.FINDING_KIND_CLASS_IMBALANCE,
            ERROR,
            f"class {name!r} has {fewest} rows, but each part needs one: training refuses it; add"
            f" rows up to {MIN_ROWS_PER_CLASS} or remove the class",
            column=column,
            rows=rows,
            **figures,
        )
    elif most >= _IMBALANCE * fewest:
        yield finding(
            pb.FINDING_KIND_CLASS_IMBALANCE,
            WARNING,
            f"class {name!r} has {fewest} rows, another one {most}: accuracy hides errors on rare"
            " classes; look at balanced accuracy, and train with balanced class weights",
            column=column,
            rows=rows,
            **figures,
        )


def of_rows(inputs_B: NDArray[np.int64], target_B: NDArray[np.int64] | None) -> list[pb.Finding]:
    """Return what rows that are alike show.

    Args:
        inputs_B: A number for each row, the same for rows with the same features.
        target_B: The same for the target; None if there is none.
    """
    found = []
    whole_B = inputs_B if target_B is None else mix(inputs_B, target_B)
    repeats_B = repeats(whole_B)
    if count := int(repeats_B.sum()):
        found.append(
            finding(
                pb.FINDING_KIND_DUPLICATES,
                WARNING,
                f"{count} rows repeat earlier ones: say whether to drop or to keep them",
                rows=np.flatnonzero(repeats_B)[:_MOST_ROWS],
                count=count,
                share=count / len(whole_B),
            )
        )
    if target_B is not None and len(inputs_B):
        _, group_B = np.unique(inputs_B, return_inverse=True)
        _, code_B = np.unique(target_B, return_inverse=True)
        lowest = np.full(group_B.max() + 1, code_B.max())
        highest = np.zeros_like(lowest)
        np.minimum.at(lowest, group_B, code_B)
        np.maximum.at(highest, group_B, code_B)
        torn_B = (lowest != highest)[group_B]
        if count := int(torn_B.sum()):
            found.append(
                finding(
                    pb.FINDING_KIND_CONTRADICTIONS,
                    WARNING,
                    f"{count} rows are like another one in all features but not in the target: no"
                    " model can be right on all of them; correct them or add a feature",
                    rows=np.flatnonzero(torn_B)[:_MOST_ROWS],
                    count=count,
                    share=count / len(inputs_B),
                )
            )
    return found


def across_split(whole_B: NDArray[np.int64], split: Split) -> Iterator[pb.Finding]:
    """Yield what rows that are alike in different parts show."""
    held_out = np.concatenate([split.validation, split.test])
    seen_B = np.isin(whole_B[held_out], whole_B[split.train])
    if count := int(seen_B.sum()):
        yield finding(
            pb.FINDING_KIND_DUPLICATES_ACROSS_SPLITS,
            WARNING,
            f"{count} rows to judge by are in the training part, too: figures would be better than"
            " the model; drop duplicates, or divide by group",
            rows=np.sort(held_out[seen_B])[:_MOST_ROWS],
            count=count,
            share=count / len(held_out),
        )


def of_times(times_B: NDArray[np.float64], split: Split, column: str) -> Iterator[pb.Finding]:
    """Yield what times of rows show: those judged by should be later than those trained on."""
    early_B = times_B[split.test] < times_B[split.train].max()
    if count := int(early_B.sum()):
        yield finding(
            pb.FINDING_KIND_TIME_LEAK,
            WARNING,
            f"{count} rows of the test are earlier than rows trained on: the model would be judged"
            f" on a past that it knows the future of; divide by time, column {column!r}",
            column=column,
            rows=split.test[early_B][:_MOST_ROWS],
            count=count,
            share=count / len(split.test),
        )


def repeats(whole_B: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark rows that repeat an earlier one."""
    repeats_B = np.ones(len(whole_B), np.bool_)
    repeats_B[np.unique(whole_B, return_index=True)[1]] = False
    return repeats_B


def mix(*parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for each row, the same for rows that are the same in all `parts`.

    Others share one by chance only, about once in 2^64 pairs.
    """
    mixed = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        mixed = (mixed ^ part.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed.view(np.int64)


def ordered(findings: Sequence[pb.Finding]) -> list[pb.Finding]:
    """Return findings with the worst first."""
    return sorted(findings, key=lambda found: -found.severity)

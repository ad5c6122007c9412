"""Time series, cut into windows: what was, and what came next.

Shape suffixes: B windows, or rows of the file; F channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.quantities import QuantityReader, describe_quantities
from servery_trainer.rows import Rows, read_table
from servery_trainer.sequence_tasks import ForecastTask
from servery_trainer.split import no_time, parse_times
from servery_trainer.targets import require_rows

HISTORY_INPUT: Final = "history"
MAX_BYTES: Final = 2 << 30
"""Of all windows of a job together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizons:
    """The numbers that come after each window; see `Target`."""

    values: NDArray[np.float32]
    """[B, horizon], finite."""
    past: NDArray[np.float32]
    """The same column in the window before, [B, step]."""
    naive_errors_B: NDArray[np.float32]
    """How far off the value of one season before is, one step ahead."""
    column: str
    """Where they come from."""

    @property
    def width(self) -> int:
        """See `Target`."""
        return int(self.values.shape[1])

    @property
    def strata_B(self) -> NDArray[np.int64]:
        """See `Target`: all alike."""
        return np.zeros(len(self.values), np.int64)

    def keep(self, mask_B: NDArray[np.bool_]) -> Self:
        """See `Target`."""
        return replace(
            self,
            values=self.values[mask_B],
            past=self.past[mask_B],
            naive_errors_B=self.naive_errors_B[mask_B],
        )

    def check(self) -> None:
        """See `Target`: there must be a window for each part, and two different numbers."""
        require_rows(len(self.values))
        if self.values.min() == self.values.max():
            raise DatasetInvalidError(
                Problem.CONSTANT_TARGET,
                f"column {self.column!r} holds {self.values[0, 0]:g} in all rows; there is nothing"
                " to forecast",
                column=self.column,
            )

    def describe(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """See `Target`."""
        return describe_quantities(self.values[rows])


class _Values(QuantityReader):
    """Reads the series; its columns are channels of one input, so no name can be taken."""

    outputs = ()


def read_windows(task: ForecastTask, path: Path) -> Rows:
    """Read the time series of a table and cut all windows out of them, one for each step.

    Returns:
        One row per window: `history` [B, step, channel], the target first. Its number is that of
        the row of its first forecast step.

    Raises:
        DatasetInvalidError: A column is missing, a cell is empty or no number or time, a series
            has two rows of one time, or no series is as long as one window and its horizon.
        FieldInvalidError: All windows together take more than `MAX_BYTES`.
    """
    channels = (task.target, *task.covariates)
    types = dict.fromkeys(channels, dataset_pb2.COLUMN_TYPE_NUMERIC)
    places = (task.time, task.series) if task.series else (task.time,)
    table = read_table(channels, _Values(task.target), types, path, places)
    values_BF = np.concatenate([table.inputs[name] for name in channels], axis=1)
    _require_values(table, values_BF, channels, places)
    times_B, wrong = parse_times(table.aside[task.time])
    if wrong is not None:
        raise no_time(wrong + 1, task.time, table.aside[task.time][wrong])
    series_B = table.aside[task.series].astype(str) if task.series else np.zeros(len(times_B))
    windows = [
        _cut(values_BF, times_B, rows, task)
        for rows in _ordered(times_B, series_B, task)
        if len(rows) >= task.window + task.horizon
    ]
    _check_size(windows, task)
    history, future, naive, spans, numbers = (
        np.concatenate(parts) for parts in zip(*windows, strict=True)
    )
    return Rows(
        inputs={HISTORY_INPUT: history},
        types={},
        target=Horizons(
            values=future, past=history[..., 0], naive_errors_B=naive, column=task.target
        ),
        numbers_B=numbers,
        spans=spans,
    )


_Window = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def _require_values(
    table: Rows, values_BF: NDArray[np.float32], channels: tuple[str, ...], places: tuple[str, ...]
) -> None:
    for name, values_B in zip(channels, values_BF.T, strict=True):
        if np.isnan(values_B).any():
            row = int(np.isnan(values_B).argmax()) + 1
            raise missing_value(row, name, "steps cannot be left out; fill the cell in")
    for name in places:
        empty_B = table.aside[name] == ""
        if empty_B.any():
            raise missing_value(int(empty_B.argmax()) + 1, name, "fill the cell in")


def _ordered(
    times_B: NDArray[np.float64], series_B: NDArray[Any], task: ForecastTask
) -> list[NDArray[np.int64]]:
    """Return the rows of each series in the order of their times."""
    order = np.lexsort((times_B, series_B))
    ends = np.flatnonzero(series_B[order][1:] != series_B[order][:-1]) + 1
    found = np.split(order, ends)
    for rows in found:
        repeated = np.flatnonzero(np.diff(times_B[rows]) == 0)
        if len(repeated):
            earlier, later = sorted(rows[repeated[0] : repeated[0] + 2] + 1)
            name = f" of series {shown(series_B[rows[0]])!r}" if task.series else ""
            raise DatasetInvalidError(
                Problem.DUPLICATE_ROW,
                f"row {later} has the time of row {earlier}{name}; keep one of them, or name the"
                " column that tells series apart",
                row=int(later),
                column=task.time,
            )
    return found


def _cut(
    values_BF: NDArray[np.float32],
    times_B: NDArray[np.float64],
    rows: NDArray[np.int64],
    task: ForecastTask,
) -> _Window:
    """Return the windows of one series, as views where they overlap."""
    past, ahead = task.window, task.horizon
    whole = sliding_window_view(values_BF[rows], past + ahead, axis=0)  # [B, channel, step]
    first = rows[past : past + len(whole)]
    target = whole[:, 0]
    return (
        whole[:, :, :past].transpose(0, 2, 1),
        target[:, past:],
        np.abs(target[:, past] - target[:, past - task.season]),
        np.stack([times_B[first], times_B[rows[past + ahead - 1 :]]], axis=1),
        first + 1,
    )


def _check_size(windows: list[_Window], task: ForecastTask) -> None:
    if not windows:
        raise DatasetInvalidError(
            Problem.TOO_FEW_ROWS,
            f"no series has {task.window + task.horizon} rows, as a window of {task.window} and a"
            f" horizon of {task.horizon} take; add rows or make them shorter",
        )
    size = sum(history.size * 4 for history, *_ in windows)
    if size > MAX_BYTES:
        rule = f"be smaller: all windows take {size} bytes, the limit is {MAX_BYTES}"
        raise FieldInvalidError("training_job.spec.forecasting.window", task.window, rule)

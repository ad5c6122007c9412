"""From a stored file to rows: every value parsed, none left out yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1.dataset_pb2 import ColumnType
from servery_trainer import array_targets, columns, sources, tables
from servery_trainer.aims import Goal
from servery_trainer.archives import ArrayHeader
from servery_trainer.arrays import open_arrays
from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.images import NATIVE, Sizing
from servery_trainer.sequence_tasks import SequenceTask
from servery_trainer.targets import Target, TargetReader
from servery_trainer.tasks import ImageTask

IMAGE_INPUT: Final = "image"
SEQUENCE_INPUT: Final = "sequence"

_MOST_NAMES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of a file.

    Shape suffixes: B rows.
    """

    inputs: dict[str, NDArray[Any]]
    """By input of the graph, in its order: for a table one [B, 1] per column, of float32 with NaN
    for a missing value, or of `str` objects with "" for one; for images `image` [B, height, width,
    channel] of the dataset's dtype (float32 for float64); for sequences `sequence` [B, step,
    channel] and for time series `history` [B, step, channel], float32."""

    types: Mapping[str, ColumnType.ValueType]
    """What each column of a table is; empty for images."""

    target: Target
    """What each row teaches."""

    numbers_B: NDArray[np.int64]
    """The number of each row in the file, from 1."""

    aside: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    """Texts [B] of columns that rows are judged by and not learned from; "" where missing."""

    spans: NDArray[np.float64] | None = None
    """Of windows of time series [B, 2]: the first and the last time that is forecast."""

    def keep(self, mask_B: NDArray[np.bool_]) -> "Rows":
        """Return the rows where `mask_B` holds."""
        if mask_B.all():
            return self
        return Rows(
            inputs={name: values[mask_B] for name, values in self.inputs.items()},
            types=self.types,
            target=self.target.keep(mask_B),
            numbers_B=self.numbers_B[mask_B],
            aside={name: texts_B[mask_B] for name, texts_B in self.aside.items()},
            spans=None if self.spans is None else self.spans[mask_B],
        )


def read_table(
    features: Sequence[str],
    target: TargetReader,
    column_types: Mapping[str, ColumnType.ValueType],
    path: Path,
    aside: Sequence[str] = (),
) -> Rows:
    """Read the features and the target of a table.

    Args:
        features: Columns. Empty: every column that is not of the target.
        target: Reads the others; used up.
        column_types: Of the columns that are to be what they do not look like.
        path: The file.
        aside: Columns for `Rows.aside`, which may be features as well.

    Raises:
        DatasetInvalidError: A column is missing or named like an output of the model, a feature
            holds something that is not of its type, or a row has no target.
    """
    header = sources.read_header(path)
    features = features or tuple(name for name in header if name not in target.columns)
    _check_columns(header, features, target, aside)
    inferred = columns.infer_types(
        path, header, [name for name in features if name not in column_types]
    )
    types = [column_types.get(name) or inferred[name] for name in features]
    parts: list[list[NDArray[Any]]] = [[] for _ in features]
    shelves: list[list[Any]] = [[] for _ in aside]
    wanted = list(dict.fromkeys([*features, *target.columns, *aside]))
    for block in sources.read_blocks(path, header, wanted):
        by_name = dict(zip(wanted, block.columns, strict=True))
        target.add(block.first_row, [by_name[name] for name in target.columns])
        for shelf, name in zip(shelves, aside, strict=True):
            shelf += by_name[name].fill_null("").to_pylist()
        cells = [by_name[name] for name in features]
        for part, values in zip(parts, _values(block, cells, features, types), strict=True):
            part.append(values)
    if not any(map(len, parts[0])):
        raise tables.no_rows()
    inputs = {
        name: np.concatenate(part)[:, None] for name, part in zip(features, parts, strict=True)
    }
    rows = len(inputs[features[0]])
    return Rows(
        inputs=inputs,
        types=dict(zip(features, types, strict=True)),
        target=target.target(rows),
        numbers_B=np.arange(1, rows + 1),
        aside={
            name: np.array(shelf, np.object_) for name, shelf in zip(aside, shelves, strict=True)
        },
    )


def _check_columns(
    header: Sequence[str], features: Sequence[str], target: TargetReader, aside: Sequence[str]
) -> None:
    for name in (*target.columns, *features, *aside):
        if name not in header:
            known = ", ".join(header[:_MOST_NAMES]) + (", …" if len(header) > _MOST_NAMES else "")
            raise DatasetInvalidError(
                Problem.MISSING_COLUMN,
                f"there is no column {shown(name)!r}; the file has {known}",
                column=name,
            )
        if name in target.outputs and name in features:
            raise DatasetInvalidError(
                Problem.DUPLICATE_COLUMN,
                f"column {name!r} has the name of an output of the model; rename it or leave it"
                " out of the features",
                column=name,
            )
    if not features:
        raise DatasetInvalidError(
            Problem.MISSING_COLUMN,
            f"the file holds no column but the target {target.columns[0]!r}; there is nothing to"
            " learn from",
            column=target.columns[0],
        )


def _values(
    block: tables.Block,
    cells: Sequence[Any],
    features: Sequence[str],
    types: Sequence[ColumnType.ValueType],
) -> list[NDArray[Any]]:
    """Parse the features of a block; of several bad cells the one in the first row is named."""
    parsed: list[NDArray[Any]] = []
    bad = []
    values: NDArray[Any]
    for index, (column, kind) in enumerate(zip(cells, types, strict=True)):
        if kind == dataset_pb2.COLUMN_TYPE_NUMERIC:
            values, wrong = tables.parse_float32(column)
        else:
            wrong = columns.first_wrong(column, kind)
            values = columns.texts(column, kind)
        if wrong is not None:
            bad.append((wrong, index))
        parsed.append(values)
    if bad:
        row, index = min(bad)
        place, value = (block.first_row + row, features[index]), cells[index][row].as_py()
        if types[index] == dataset_pb2.COLUMN_TYPE_NUMERIC:
            raise tables.not_a_number(*place, value)
        raise columns.wrong_type(*place, value, types[index])
    return parsed


def are_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which values of an input are missing."""
    mask: NDArray[np.bool_] = values == "" if values.dtype == np.object_ else np.isnan(values)
    return mask


def read_images(task: ImageTask, path: Path) -> Rows:
    """Read the images of a file of arrays and what they teach.

    Raises:
        DatasetInvalidError: An array is missing, of a wrong shape or dtype, or holds NaN; or a row
            teaches nothing.
        FieldInvalidError: The labels have another number of names.
    """
    shapes = {3: "[row, height, width]", 4: "[row, height, width, channel]"}
    images, taught = _read_arrays(
        path, task.sizing, task.images, task.target, task.goal, "images", shapes
    )
    target = array_targets.read(
        task.goal, taught, task.target, task.names, f"training_job.spec.{task.name}.names"
    )
    return _array_rows(IMAGE_INPUT, images[..., None] if images.ndim == 3 else images, target)


def read_sequences(task: SequenceTask, path: Path) -> Rows:
    """Read the sequences and the classes of an NPZ file; see `read_images`."""
    shapes = {2: "[row, step]", 3: "[row, step, channel]"}
    numbers, taught = _read_arrays(
        path, NATIVE, task.sequences, task.labels, Goal.CLASS, "sequences", shapes
    )
    target = array_targets.read(Goal.CLASS, taught, task.labels, (), "")
    numbers = numbers.astype(np.float32)
    return _array_rows(SEQUENCE_INPUT, numbers[..., None] if numbers.ndim == 2 else numbers, target)


def _array_rows(name: str, values: NDArray[Any], target: Target) -> Rows:
    numbers_B = np.arange(1, len(values) + 1)
    return Rows(inputs={name: values}, types={}, target=target, numbers_B=numbers_B)


def _read_arrays(
    path: Path,
    sizing: Sizing,
    name: str,
    target: str,
    goal: Goal,
    what: str,
    shapes: Mapping[int, str],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read an array of numbers and that of what they teach.

    Args:
        path: The file.
        sizing: How image files become images of one size.
        name: The array of numbers.
        target: The array of what they teach.
        goal: What that is.
        what: What the numbers are.
        shapes: The shapes they may have, by rank.
    """
    with open_arrays(path, sizing) as archive:
        _check_arrays(name, target, what, shapes, archive.headers)
        array_targets.check_header(goal, archive.headers[target])
        values, taught = archive.load(name), archive.load(target)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        bad_B = ~np.isfinite(narrow).reshape(len(narrow), -1).all(axis=1)
        if bad_B.any():
            row = int(bad_B.argmax()) + 1
            raise DatasetInvalidError(
                Problem.NOT_A_NUMBER,
                f"row {row} of array {name!r} holds NaN, infinity or a number beyond float32;"
                " correct or remove it",
                row=row,
                array=name,
            )
        values = values if values.dtype == np.float16 else narrow
    return values, taught


def _check_arrays(
    name: str,
    target: str,
    what: str,
    shapes: Mapping[int, str],
    headers: Mapping[str, ArrayHeader],
) -> None:
    for wanted in (name, target):
        if wanted not in headers:
            known = ", ".join(headers)
            raise DatasetInvalidError(
                Problem.MISSING_ARRAY,
                f"there is no array {shown(wanted)!r}; the file has {shown(known)}",
                array=wanted,
            )
    values = headers[name]
    if len(values.shape) not in shapes:
        raise DatasetInvalidError(
            Problem.WRONG_SHAPE,
            f"array {name!r} has shape {values.shape}; {what} must be"
            f" {' or '.join(shapes.values())}",
            array=name,
        )
    if values.dtype.kind not in "iuf" or values.dtype.itemsize > 8:
        raise DatasetInvalidError(
            Problem.WRONG_DTYPE,
            f"array {name!r} is of dtype {values.dtype}; {what} must be whole numbers or floats of"
            " at most 64 bits",
            array=name,
        )

"""Targets that are arrays of a file: the class, the number or the labels of each row.

Shape suffixes: B rows, K labels.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_rpc.errors import FieldInvalidError
from servery_trainer.aims import Goal
from servery_trainer.archives import ArrayHeader
from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.label_sets import MAX_LABELS, LabelSets
from servery_trainer.quantities import Quantities
from servery_trainer.targets import Classes, Place, Target

_SHAPES: Final = {
    Goal.CLASS: "[row]",
    Goal.NUMBER: "[row] or [row, 1]",
    Goal.LABELS: "[row, label]",
}
_KINDS: Final = {Goal.CLASS: "iuUS", Goal.NUMBER: "iufUS", Goal.LABELS: "biu"}
_RULES: Final = {
    Goal.CLASS: "classes must be integers or text",
    Goal.NUMBER: "they must be numbers, or texts that are",
    Goal.LABELS: "labels must be booleans, or integers 0 and 1",
}


def check_header(goal: Goal, header: ArrayHeader) -> None:
    """Refuse an array that cannot be what rows are to teach, before it is read.

    Raises:
        DatasetInvalidError: Its shape or its dtype is another one.
    """
    name, shape = header.name, header.shape
    fits = {
        Goal.CLASS: len(shape) == 1,
        Goal.NUMBER: shape[1:] in ((), (1,)),
        Goal.LABELS: len(shape) == 2,
    }
    if not fits[goal]:
        raise DatasetInvalidError(
            Problem.WRONG_SHAPE,
            f"array {name!r} has shape {shape}; what rows teach must be {_SHAPES[goal]}",
            array=name,
        )
    if header.dtype.kind not in _KINDS[goal]:
        raise DatasetInvalidError(
            Problem.WRONG_DTYPE,
            f"array {name!r} is of dtype {header.dtype}; {_RULES[goal]}",
            array=name,
        )


def read(goal: Goal, values: NDArray[Any], array: str, names: Sequence[str], field: str) -> Target:
    """Return what rows teach.

    Args:
        goal: What kind of thing.
        values: Of an array that `check_header` took.
        array: Its name.
        names: Of the labels; empty to number them.
        field: Path of `names` in the spec.

    Raises:
        DatasetInvalidError: The value of a row cannot be used.
        FieldInvalidError: There are not as many names as labels.
    """
    match goal:
        case Goal.NUMBER:
            numbers = _numbers(values.reshape(len(values)), array)
            return Quantities(values=numbers[:, None], place=Place(array=array))
        case Goal.LABELS:
            return _labels(values, array, names, field)
        case _:
            return Classes.of(_texts(values, array), Place(array=array))


def _numbers(values_B: NDArray[Any], array: str) -> NDArray[np.float32]:
    if values_B.dtype.kind in "US":
        texts = [text.strip() for text in _texts(values_B, array)]
        values_B = np.array([_float(text) for text in texts])
    with np.errstate(over="ignore"):
        numbers_B = values_B.astype(np.float32)
    wrong_B = ~np.isfinite(numbers_B)
    if wrong_B.any():
        row = int(wrong_B.argmax()) + 1
        raise DatasetInvalidError(
            Problem.NOT_A_NUMBER,
            f"row {row} of array {array!r} is not a finite number of 32 bits; correct it or remove"
            " the row",
            row=row,
            array=array,
        )
    return numbers_B


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _labels(values: NDArray[Any], array: str, names: Sequence[str], field: str) -> LabelSets:
    count = values.shape[1]
    if count > MAX_LABELS:
        raise DatasetInvalidError(
            Problem.TOO_LARGE,
            f"array {array!r} holds {count} labels; at most {MAX_LABELS} can be learned at once",
            array=array,
        )
    if names and len(names) != count:
        rule = f"name all {count} labels of array {array!r}, or none"
        raise FieldInvalidError(field, len(names), rule)
    wrong_B = ((values != 0) & (values != 1)).any(axis=1)
    if wrong_B.any():
        row = int(wrong_B.argmax()) + 1
        raise DatasetInvalidError(
            Problem.WRONG_TYPE,
            f"row {row} of array {array!r} holds {shown(values[row - 1].tolist())}; a label is 0 or"
            " 1",
            row=row,
            array=array,
        )
    labels = tuple(names) or tuple(map(str, range(count)))
    return LabelSets(values=values.astype(np.uint8), labels=labels, places=(Place(array=array),))


def _texts(values_B: NDArray[Any], array: str) -> list[str]:
    texts = []
    for row, value in enumerate(values_B.tolist(), start=1):
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
            text.encode()  # surrogates cannot be served
        except UnicodeError:
            raise DatasetInvalidError(
                Problem.MALFORMED,
                f"row {row} of array {array!r} is not UTF-8 text",
                row=row,
                array=array,
            ) from None
        if not text.strip():
            raise DatasetInvalidError(
                Problem.MISSING_VALUE,
                f"row {row} of array {array!r} is empty; fill it in or remove the row",
                row=row,
                array=array,
            )
        texts.append(text)
    return texts

"""Values of a spec: in their range, or refused by name."""

import math
from collections.abc import Sequence
from typing import Any

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError


def count(value: int, default: int, most: int, field: str) -> int:
    """Return `value`, or `default` for 0.

    Raises:
        FieldInvalidError: It is below 0 or over `most`.
    """
    if not 0 <= value <= most:
        raise FieldInvalidError(field, value, f"be 1 to {most}, or 0 for {default}")
    return value or default


def between(value: float, most: float, field: str) -> float:
    """Return `value`.

    Raises:
        FieldInvalidError: It is below 0, over `most` or not a number.
    """
    if not 0 <= value <= most:  # also NaN
        raise FieldInvalidError(field, value, f"be 0 to {most:g}")
    return value


def known(value: int, enum: Any, field: str) -> int:
    """Return `value` of a protobuf enum, or 1, the default of all enums of a spec, for 0.

    Raises:
        FieldInvalidError: The enum has no such value.
    """
    if value not in enum.values():
        raise FieldInvalidError(field, value, "be a value this server knows")
    return value or 1


def finite(value: float, field: str) -> float:
    """Return `value`, 0 or more.

    Raises:
        FieldInvalidError: It is below 0, infinite or not a number.
    """
    if not (math.isfinite(value) and value >= 0):
        raise FieldInvalidError(field, value, "be a finite number from 0")
    return value


def columns(names: Sequence[str], others: Sequence[str], field: str) -> tuple[str, ...]:
    """Return names of columns.

    Raises:
        FieldInvalidError: One is empty, repeated, or among `others`, which are the targets.
    """
    for index, name in enumerate(names):
        place = f"{field}[{index}]"
        if not name:
            raise FieldInvalidError(place, name, "name a column")
        if name in others:
            raise FieldInvalidError(place, name, "be another column than the target")
        if name in names[:index]:
            raise FieldInvalidError(place, name, "be named once")
    return tuple(names)


def duplicate_policy(
    value: pb.DuplicatePolicy.ValueType, path: str
) -> pb.DuplicatePolicy.ValueType:
    """Return `value`, or REFUSE for none, of the task at `path`; see `known`."""
    return pb.DuplicatePolicy.ValueType(known(value, pb.DuplicatePolicy, f"{path}.duplicates"))

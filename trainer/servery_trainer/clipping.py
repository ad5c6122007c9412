"""Between which values columns of numbers are held: declared, or fitted on the training part."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """The ends of one column; of each at most one is not None."""

    lower: float | None = None
    upper: float | None = None
    lower_quantile: float | None = None
    upper_quantile: float | None = None

    @classmethod
    def parse(cls, message: pb.Clip, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: No end is given, or one twice, is no number, or they cross.
        """
        clip = cls(
            lower=_bound(message, "lower", path),
            upper=_bound(message, "upper", path),
            lower_quantile=_quantile(message, "lower_quantile", path),
            upper_quantile=_quantile(message, "upper_quantile", path),
        )
        if clip == cls():
            raise FieldInvalidError(path, "", "give an end: lower, upper or a quantile for it")
        for end, quantile in (("lower", clip.lower_quantile), ("upper", clip.upper_quantile)):
            if quantile is not None and getattr(clip, end) is not None:
                raise FieldInvalidError(f"{path}.{end}_quantile", quantile, f"not be with {end}")
        _require_order(clip.lower, clip.upper, f"{path}.upper")
        _require_order(clip.lower_quantile, clip.upper_quantile, f"{path}.upper_quantile")
        return clip

    def to_proto(self) -> pb.Clip:
        """Render it; `parse` gives an equal value back."""
        return pb.Clip(
            lower=self.lower,
            upper=self.upper,
            lower_quantile=self.lower_quantile,
            upper_quantile=self.upper_quantile,
        )

    def fit(self, column: str, values: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
        """Return both ends, infinite if open.

        Args:
            column: The name, for messages.
            values: Those of the training part, NaN for a missing one.

        Raises:
            DatasetInvalidError: A quantile is asked for and no value is there, or the ends cross.
        """
        ends = []
        for bound, quantile, open_end in (
            (self.lower, self.lower_quantile, -np.inf),
            (self.upper, self.upper_quantile, np.inf),
        ):
            if quantile is None:
                ends.append(np.float32(open_end if bound is None else bound))
                continue
            present = values[~np.isnan(values)].astype(np.float64)
            if not len(present):
                raise DatasetInvalidError(
                    Problem.MISSING_VALUE,
                    f"column {column!r} has no value in the training part to take a quantile of;"
                    " give bounds, or leave it out",
                    column=column,
                )
            ends.append(np.float32(np.quantile(present, quantile)))
        low, high = ends
        if low > high:
            raise DatasetInvalidError(
                Problem.WRONG_TYPE,
                f"column {column!r} would be held between {low:g} and {high:g}, which cross; give"
                " other ends",
                column=column,
            )
        return low, high


def parse_clips(messages: Mapping[str, pb.Clip], path: str) -> dict[str, Clip]:
    """Parse the map at `path`, from columns to their ends.

    Raises:
        FieldInvalidError: See `Clip.parse`.
    """
    return {name: Clip.parse(clip, f"{path}[{name}]") for name, clip in sorted(messages.items())}


def _bound(message: pb.Clip, name: Literal["lower", "upper"], path: str) -> float | None:
    if not message.HasField(name):
        return None
    bound: float = getattr(message, name)
    if not math.isfinite(bound) or abs(bound) > 3e38:
        raise FieldInvalidError(f"{path}.{name}", bound, "be a finite float32")
    return bound


def _quantile(
    message: pb.Clip, name: Literal["lower_quantile", "upper_quantile"], path: str
) -> float | None:
    if not message.HasField(name):
        return None
    quantile: float = getattr(message, name)
    if not 0 <= quantile <= 1:
        raise FieldInvalidError(f"{path}.{name}", quantile, "be 0 to 1")
    return quantile


def _require_order(low: float | None, high: float | None, field: str) -> None:
    if low is not None and high is not None and low > high:
        raise FieldInvalidError(field, high, f"be at least {low:g}, the lower end")

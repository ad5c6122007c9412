"""What commands are told about columns and rows."""

from collections.abc import Iterable
from enum import StrEnum

import typer

from servery.trainer.v1 import dataset_pb2 as pb
from servery.trainer.v1 import training_pb2


class ColumnKind(StrEnum):
    """What a column is."""

    NUMERIC = "numeric"
    TEXT = "text"
    BOOLEAN = "boolean"
    DATE = "date"


class SplitBy(StrEnum):
    """By what rows are divided."""

    STRATIFIED = "stratified"
    GROUP = "group"
    TIME = "time"

    @property
    def method(self) -> pb.SplitMethod.ValueType:
        """The same for the server."""
        return pb.SplitMethod.Value(f"SPLIT_METHOD_{self.name}")


class Fit(StrEnum):
    """How images get another size."""

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"


def column_types(options: Iterable[str] | None) -> dict[str, pb.ColumnType.ValueType]:
    """Parse `COLUMN=KIND` options.

    Raises:
        BadParameter: One is something else.
    """
    return dict(map(_column_type, options or ()))


def ranges(options: Iterable[str] | None) -> dict[str, pb.Range]:
    """Parse `COLUMN=MIN:MAX` options, of which either end may lack.

    Raises:
        BadParameter: One is something else.
    """
    found = {}
    for option in options or ():
        column, low, high = _ends(option, "--range")
        try:
            found[column] = pb.Range(
                minimum=float(low) if low else None, maximum=float(high) if high else None
            )
        except ValueError:
            raise _no_ends(option, "--range") from None
    return found


def clips(options: Iterable[str] | None) -> dict[str, training_pb2.Clip]:
    """Parse `COLUMN=LOW:HIGH` options; ends may lack, or be quantiles such as 1%.

    Raises:
        BadParameter: One is something else.
    """
    found = {}
    for option in options or ():
        column, *ends = _ends(option, "--clip")
        found[column] = clip = training_pb2.Clip()
        for name, end in zip(("lower", "upper"), ends, strict=True):
            try:
                if end.endswith("%"):
                    setattr(clip, f"{name}_quantile", float(end[:-1]) / 100)
                elif end:
                    setattr(clip, name, float(end))
            except ValueError:
                raise _no_ends(option, "--clip") from None
    return found


def fill(options: Iterable[str] | None) -> training_pb2.Fill:
    """Parse `KIND=VALUE` options: what is put in for a missing value, by kind of column.

    Raises:
        BadParameter: One is something else.
    """
    found = training_pb2.Fill()
    for option in options or ():
        kind, separator, value = option.partition("=")
        try:
            if not separator:
                raise ValueError(option)
            match ColumnKind(kind):
                case ColumnKind.NUMERIC:
                    found.number = float(value)
                case ColumnKind.BOOLEAN:
                    found.boolean = {"true": True, "false": False}[value]
                case ColumnKind.TEXT:
                    found.text = value
                case ColumnKind.DATE:
                    found.date = value
        except (ValueError, KeyError):
            raise typer.BadParameter(
                f"--fill {option}: give KIND=VALUE, such as numeric=-1, text=unknown, boolean=false"
                " or date=2000-01-01"
            ) from None
    return found


def sizing(fit: Fit | None, size: str) -> training_pb2.ImageSizing:
    """Parse how images get which size, `WIDTHxHEIGHT`.

    Raises:
        BadParameter: Only one of both is given, or the size is something else.
    """
    if fit is None and not size:
        return training_pb2.ImageSizing()
    width, _, height = size.partition("x")
    if fit is None or not (width.isdigit() and height.isdigit()):
        raise typer.BadParameter("give both --fit and --size WIDTHxHEIGHT, such as 64x64")
    kind = training_pb2.ImageFit.Value(f"IMAGE_FIT_{fit.name}")
    return training_pb2.ImageSizing(fit=kind, width=int(width), height=int(height))


def _column_type(option: str) -> tuple[str, pb.ColumnType.ValueType]:
    column, _, kind = option.rpartition("=")
    if not column or kind not in list(ColumnKind):
        names = ", ".join(ColumnKind)
        raise typer.BadParameter(f"--type {option}: give COLUMN=KIND, KIND one of {names}")
    return column, pb.ColumnType.Value(f"COLUMN_TYPE_{kind.upper()}")


def _ends(option: str, flag: str) -> tuple[str, str, str]:
    column, _, both = option.rpartition("=")
    low, separator, high = both.partition(":")
    if not column or not separator:
        raise _no_ends(option, flag)
    return column, low, high


def _no_ends(option: str, flag: str) -> typer.BadParameter:
    return typer.BadParameter(f"{flag} {option}: give COLUMN=LOW:HIGH, of which one end may lack")

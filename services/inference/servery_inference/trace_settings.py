"""Trace settings of the server and of single models. They are kept and told, and do nothing yet."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from servery_rpc.errors import FieldInvalidError, UnsupportedError

Values = Mapping[str, Sequence[str]]

_START: Final[Values] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_file": ("",),
    "trace_mode": ("triton",),
}
_LEVELS: Final = ("OFF", "TIMESTAMPS", "TENSORS")
_NUMBERS: Final = {
    "trace_rate": re.compile(r"[0-9]{1,9}", re.ASCII),
    "trace_count": re.compile(r"-1|[0-9]{1,9}", re.ASCII),
    "log_frequency": re.compile(r"[0-9]{1,9}", re.ASCII),
}


class TraceSettings:
    """Settings by model, over those of the server, over those at the start."""

    def __init__(self) -> None:
        self._changed: dict[str, dict[str, Sequence[str]]] = {}

    def of(self, model: str) -> dict[str, Sequence[str]]:
        """Return what is in force for a model; for the server if `model` is empty."""
        return {**_START, **self._changed.get("", {}), **self._changed.get(model, {})}

    def update(self, model: str, changes: Values) -> None:
        """Change settings of a model, or of the server if `model` is empty, all or none.

        No value resets a setting. Unknown settings are ignored.

        Raises:
            UnsupportedError: A file is named: where traces go is the operator's choice.
            FieldInvalidError: A value cannot be.
        """
        if "trace_file" in changes:
            raise UnsupportedError("trace_file")
        known = {key: values for key, values in changes.items() if key in _START}
        for key, values in known.items():
            _check(key, values)
        kept = {**self._changed.get(model, {}), **known}
        self._changed[model] = {key: values for key, values in kept.items() if values}


def _check(key: str, values: Sequence[str]) -> None:
    if key == "trace_level" and not set(values) <= set(_LEVELS):
        raise FieldInvalidError(f"settings.{key}", list(values), f"be of {', '.join(_LEVELS)}")
    pattern = _NUMBERS.get(key)
    if pattern and values and not (len(values) == 1 and pattern.fullmatch(values[0])):
        raise FieldInvalidError(f"settings.{key}", list(values), "be one whole number")

"""Trace settings of the server and of single models: which requests get spans of their own.

They choose among the requests whose call OpenTelemetry records (see `servery_rpc.telemetry`); as
long as nothing is exported they are kept and told only.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_EXPORTED: Final[Values] = {
    "trace_level": ("TIMESTAMPS",),
    "trace_rate": ("1",),
    "trace_mode": ("opentelemetry",),
}
_LEVELS: Final = ("OFF", "TIMESTAMPS", "TENSORS")
_NUMBERS: Final = {
    "trace_rate": re.compile(r"[0-9]{1,9}", re.ASCII),
    "trace_count": re.compile(r"-1|[0-9]{1,9}", re.ASCII),
    "log_frequency": re.compile(r"[0-9]{1,9}", re.ASCII),
}


class TraceSettings:
    """Settings by model, over those of the server, over those at the start. For one event loop.

    Args:
        is_exported: Whether spans go anywhere. Then all requests of recorded calls get them until
            somebody changes that; tensors (level `TENSORS`) never leave the server that way.
    """

    def __init__(self, *, is_exported: bool = False) -> None:
        self._start = {**_START, **(_EXPORTED if is_exported else {})}
        self._changed: dict[str, dict[str, Sequence[str]]] = {}
        self._samplers: dict[str, _Sampler] = {}

    def of(self, model: str) -> dict[str, Sequence[str]]:
        """Return what is in force for a model; for the server if `model` is empty."""
        return {**self._start, **self._changed.get("", {}), **self._changed.get(model, {})}

    def update(self, model: str, changes: Values) -> None:
        """Change settings of a model, or of the server if `model` is empty, all or none.

        No value resets a setting. Unknown settings are ignored. Counting begins again.

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
        if model:
            self._samplers.pop(model, None)
        else:
            self._samplers.clear()

    def take(self, model: str) -> bool:
        """Count one more request to a model; tell whether it gets spans of its own."""
        sampler = self._samplers.get(model)
        if sampler is None:
            sampler = self._samplers[model] = _Sampler.of(self.of(model))
        return sampler.take()


@dataclass(slots=True)
class _Sampler:
    is_on: bool
    every: int
    left: int
    """How many more to take; negative for no end."""

    seen: int = 0

    @classmethod
    def of(cls, settings: Values) -> "_Sampler":
        return cls(
            is_on="OFF" not in settings["trace_level"],
            every=max(1, int(settings["trace_rate"][0])),
            left=int(settings["trace_count"][0]),
        )

    def take(self) -> bool:
        self.seen += 1
        if not self.is_on or not self.left or self.seen % self.every:
            return False
        self.left -= 1
        return True


def _check(key: str, values: Sequence[str]) -> None:
    if key == "trace_level" and not set(values) <= set(_LEVELS):
        raise FieldInvalidError(f"settings.{key}", list(values), f"be of {', '.join(_LEVELS)}")
    pattern = _NUMBERS.get(key)
    if pattern and values and not (len(values) == 1 and pattern.fullmatch(values[0])):
        raise FieldInvalidError(f"settings.{key}", list(values), "be one whole number")

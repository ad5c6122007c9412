"""What the process logs, changed while it runs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Self

FORMATS: Final = ("default", "ISO8601")
"""Names that clients know. The records are JSON lines with ISO 8601 times under both."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Which records are written."""

    info: bool
    warning: bool
    error: bool

    verbose_level: int
    """Above 0, records for debugging are written too."""

    format: str = FORMATS[0]

    def admits(self, level: int) -> bool:
        """Tell whether records of `level` are written; those that end the process always are."""
        if level >= logging.CRITICAL:
            return True
        if level >= logging.ERROR:
            return self.error
        if level >= logging.WARNING:
            return self.warning
        return self.info if level >= logging.INFO else self.verbose_level > 0


class LogSwitch(logging.Filter):
    """Applies `LogSettings` to the handlers of the root logger."""

    def __init__(self, root: logging.Logger) -> None:
        super().__init__()
        self._root = root
        self.settings = LogSettings(
            info=root.isEnabledFor(logging.INFO),
            warning=root.isEnabledFor(logging.WARNING),
            error=root.isEnabledFor(logging.ERROR),
            verbose_level=int(root.isEnabledFor(logging.DEBUG)),
        )

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[Self]:
        """Let settings be changed inside the block; all is as before when it is left."""
        root = logging.getLogger()
        switch, level, handlers = cls(root), root.level, list(root.handlers)
        for handler in handlers:
            handler.addFilter(switch)
        try:
            yield switch
        finally:
            for handler in handlers:
                handler.removeFilter(switch)
            root.setLevel(level)

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        return self.settings.admits(record.levelno)

    def apply(self, **changes: bool | int | str) -> None:
        """Change some settings."""
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]
        levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
        self._root.setLevel(next(level for level in levels if self.settings.admits(level)))

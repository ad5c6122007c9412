"""Notices whether requests come several at a time: then one that waits a moment can join others."""

import asyncio
from typing import Final

_REMEMBERED_TURNS: Final = 8


class Company:
    """What the last turns of the event loop brought."""

    def __init__(self) -> None:
        self._in_turn = 0
        self._remembered = 0

    def expects(self) -> bool:
        """Count a request; tell whether others are likely to come in the same turn."""
        self._in_turn += 1
        if self._in_turn == 1:
            asyncio.get_running_loop().call_soon(self._end_turn)
        return self._remembered > 0

    def _end_turn(self) -> None:
        if self._in_turn > 1:
            self._remembered = _REMEMBERED_TURNS
        elif self._remembered:
            self._remembered -= 1
        self._in_turn = 0

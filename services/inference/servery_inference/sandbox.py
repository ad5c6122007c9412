"""Sends graphs that nobody vouches for through the throw-away process and reads its verdict."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from servery_inference.engine import LoadFailedError

_START_S: Final = 30.0
_IDLE_S: Final = 2.0
_MAX_WORDS: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """What opening one graph for the first time may cost."""

    memory_bytes: int
    """Address space of the process."""

    wall_s: float
    """Time until it is killed, and the most time of a processor it gets."""


class Sandbox:
    """Opens graphs in throw-away processes, one at a time. For one event loop.

    The process that forks them is started when it is needed, and ends when it is not any more.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, limits: AdmissionLimits) -> AsyncIterator[Self]:
        """Be ready for the length of the block."""
        sandbox = cls(limits)
        try:
            yield sandbox
        finally:
            await sandbox._end()

    async def admit(self, graph: Path) -> int:
        """Open a graph where it can do no harm.

        Returns:
            By how many bytes that process grew.

        Raises:
            LoadFailedError: The graph is refused, or it broke the process or a limit.
        """
        async with self._turn:
            if self._idle:
                self._idle.cancel()
            try:
                verdict = await self._verdict(graph)
            except BaseException:
                await self._end()
                raise
            self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._dismiss)
        if "problem" in verdict:
            raise LoadFailedError(f"the graph {str(verdict['problem'])[:_MAX_WORDS]}")
        return int(verdict.get("memory_bytes", 0))

    async def _verdict(self, graph: Path) -> dict[str, Any]:
        process = self._process or await self._start()
        self._process = process
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the throw-away process has no pipes")
        try:
            async with asyncio.timeout(self._limits.wall_s + _START_S):
                process.stdin.write(json.dumps({"graph": str(graph)}).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            raise LoadFailedError(
                f"the graph takes longer to load than the {self._limits.wall_s:g} s that"
                " --admission-wall-s allows"
            ) from None
        except OSError:
            line = b""
        try:
            verdict = json.loads(line)
        except ValueError:
            raise LoadFailedError("the throw-away process that opens graphs ended") from None
        return verdict if isinstance(verdict, dict) else {}

    async def _start(self) -> Process:
        # -I and cwd: nothing beside a model is importable. No environment: it needs no secret.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "servery_inference.admission"),
            *("--memory-bytes", str(self._limits.memory_bytes)),
            *("--cpu-s", str(max(1, round(self._limits.wall_s)))),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd="/",
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def _dismiss(self) -> None:
        if self._process and self._process.stdin and not self._turn.locked():
            self._process.stdin.close()
            self._process = None

    async def _end(self) -> None:
        if self._idle:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # With the fork that may be running.
        await process.wait()

"""Sends graphs that nobody vouches for through the throw-away process and reads its verdict."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, Final, Self

from servery_inference.engine import LoadFailedError
from servery_inference.graph_cache import GraphCache

_START_S: Final = 30.0
_IDLE_S: Final = 2.0
_MAX_WORDS: Final = 300
_MAX_VERDICT_BYTES: Final = 64 << 10
_MEMORY: Final = "memory_bytes"
_RELEASE: Final = version("servery")
"""Another one may admit less."""


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

    Args:
        limits: What each may cost.
        cache: Remembers which graphs were admitted; None to open all again.
    """

    def __init__(self, limits: AdmissionLimits, cache: GraphCache | None = None) -> None:
        self._limits = limits
        self._cache = cache
        self._process: Popen[bytes] | None = None
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, limits: AdmissionLimits, cache: GraphCache | None = None
    ) -> AsyncIterator[Self]:
        """Be ready for the length of the block."""
        sandbox = cls(limits, cache)
        try:
            yield sandbox
        finally:
            await sandbox._end()

    async def admit(self, graph: Path) -> int:
        """Open a graph where it can do no harm, unless that went well before.

        Returns:
            By how many bytes that process grew.

        Raises:
            LoadFailedError: The graph is refused, or it broke the process or a limit.
        """
        key, known = await asyncio.to_thread(_recalled, self._cache, graph, self._limits)
        if known is not None:
            return known
        memory_bytes = await self._admitted(graph)
        if self._cache is not None and key:
            await asyncio.to_thread(_keep, self._cache, key, memory_bytes)
        return memory_bytes

    async def _admitted(self, graph: Path) -> int:
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
        return int(verdict.get(_MEMORY, 0))

    async def _verdict(self, graph: Path) -> dict[str, Any]:
        if self._process is None:
            self._process = await asyncio.to_thread(self._start)
        process = self._process
        try:
            async with asyncio.timeout(self._limits.wall_s + _START_S):
                line = await asyncio.to_thread(_asked, process, graph)
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

    def _start(self) -> "Popen[bytes]":
        # Not by the event loop: that of libuv forks in a way that grpc objects to.
        # -I and cwd: nothing beside a model is importable. No environment: it needs no secret.
        limits = self._limits
        return Popen(  # noqa: S603  it is this program
            [
                *(sys.executable, "-I", "-m", "servery_inference.admission"),
                *("--memory-bytes", str(limits.memory_bytes)),
                *("--cpu-s", str(max(1, round(limits.wall_s)))),
            ],
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd="/",
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def _dismiss(self) -> None:
        if not self._turn.locked():
            process, self._process = self._process, None
            _kill(process)

    async def _end(self) -> None:
        if self._idle:
            self._idle.cancel()
        process, self._process = self._process, None
        await asyncio.to_thread(_kill, process)


def _recalled(
    cache: GraphCache | None, graph: Path, limits: AdmissionLimits
) -> tuple[str, int | None]:
    """The key of a verdict, and the memory it speaks of, if it was kept."""
    if cache is None:
        return "", None
    try:
        key = cache.key(graph, "admitted", _RELEASE, limits)
    except OSError:  # The throw-away process says what is wrong.
        return "", None
    known = cache.read(key)
    memory_bytes = known.facts.get(_MEMORY) if known else None
    return key, memory_bytes if isinstance(memory_bytes, int) else None


def _keep(cache: GraphCache, key: str, memory_bytes: int) -> None:
    with contextlib.suppress(OSError), cache.draft(key) as draft:
        draft.keep({_MEMORY: memory_bytes})


def _asked(process: "Popen[bytes]", graph: Path) -> bytes:
    if process.stdin is None or process.stdout is None:
        return b""
    process.stdin.write(json.dumps({"graph": str(graph.absolute())}).encode() + b"\n")
    process.stdin.flush()
    return process.stdout.readline(_MAX_VERDICT_BYTES)


def _kill(process: "Popen[bytes] | None") -> None:
    """End the process, with the fork that may be running; it has nothing to lose."""
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()

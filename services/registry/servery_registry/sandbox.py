"""Sends each new bundle through the throw-away process and reads its verdict."""

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_registry.bundle import GRAPH, BundleInvalidError
from servery_rpc.errors import ServeryError

_PARALLEL: Final = 2
_MAX_VERDICT_BYTES: Final = 64 * 1024
_MAX_WORDS: Final = 300  # gRPC carries a status in headers of at most 8 KiB.


class GraphRefusedError(ServeryError):
    """A graph of a bundle cannot be admitted."""

    reason = reasons.ERROR_REASON_GRAPH_REFUSED

    def __init__(self, problem: str, graph: str = GRAPH) -> None:
        """Build it with a `problem` that follows "the graph": "is …", "needs …"."""
        super().__init__(f"the graph in {graph} {problem}", problem=problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """What opening one bundle may cost."""

    memory_bytes: int
    """Address space of the process."""

    wall_s: float
    """Time until it is killed, and the most CPU time it gets."""


class Sandbox:
    """Opens bundles in throw-away processes, few at once. Lives on one event loop."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(_PARALLEL)

    async def admit(self, directory: Path) -> None:
        """Check the bundle in `directory`; see `admission`.

        Raises:
            GraphRefusedError: The graph is refused, or it broke the process or a limit.
            BundleInvalidError: Another file is malformed.
        """
        async with self._places:
            verdict = _parse(await self._run(directory))
        if verdict is None:
            raise GraphRefusedError(
                "broke the process that loaded it, which may use"
                f" {self._limits.memory_bytes} bytes of memory and {self._limits.wall_s:g} s"
            )
        if "file" in verdict:
            raise BundleInvalidError(verdict["file"], verdict["problem"])
        if verdict:
            raise GraphRefusedError(verdict["problem"], verdict.get("graph", GRAPH))

    async def _run(self, directory: Path) -> bytes:
        # -I and cwd: a bundle may hold a file `json.py`, which must never be importable. No
        # environment: the process needs no secret of this one.
        process = await asyncio.create_subprocess_exec(
            *_command(directory, self._limits),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd="/",
            env={},
        )
        try:
            async with asyncio.timeout(self._limits.wall_s):
                verdict = await _read(process)
                # Waited for, not killed: killing what has just ended takes its status from asyncio.
                await process.wait()
                return verdict
        except TimeoutError:
            raise GraphRefusedError(
                f"takes longer to load than the {self._limits.wall_s:g} s this server allows"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _command(directory: Path, limits: AdmissionLimits) -> Sequence[str]:
    return (
        *(sys.executable, "-I", "-m", "servery_registry.admission", str(directory.absolute())),
        *("--memory-bytes", str(limits.memory_bytes)),
        *("--cpu-s", str(max(1, round(limits.wall_s)))),
    )


async def _read(process: Process) -> bytes:
    assert process.stdout is not None  # noqa: S101 - asked for as PIPE
    verdict = b""
    while part := await process.stdout.read(_MAX_VERDICT_BYTES):
        verdict += part
        if len(verdict) > _MAX_VERDICT_BYTES:
            process.kill()
            return b""
    return verdict


def _parse(verdict: bytes) -> dict[str, str] | None:
    """Read what the process printed; None if that is no verdict, for it may be taken over."""
    try:
        parsed: Any = json.loads(verdict)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or not all(type(v) is str for v in parsed.values()):
        return None
    if parsed and "problem" not in parsed:
        return None
    return {key: value[:_MAX_WORDS] for key, value in parsed.items()}

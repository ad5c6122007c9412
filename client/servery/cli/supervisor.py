"""Keep a set of processes running: start, watch, restart with back-off, stop."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FIRST_BACKOFF_S: Final = 0.25
MAX_BACKOFF_S: Final = 15.0
STEADY_S: Final = 20.0
"""A process that ran this long starts again at the first back-off."""

STOP_WITH_PARENT: Final = "SERVERY_STOP_WITH_PARENT"
"""Set in the environment of every child: it stops when its supervisor is gone."""


_SETTINGS_REFUSED: Final = 2
"""Exit status of a server that does not start with the settings it was given: no retry helps."""


class SettingsRefusedError(Exception):
    """A program does not start with the settings it was given."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running."""

    name: str
    """What it is called in messages and its log file."""

    argv: Sequence[str]
    """Its command line."""

    ready: Callable[[], Awaitable[bool]]
    """Asks it whether it is ready; False or an OSError mean not yet."""

    drain: Callable[[], Awaitable[None]] | None = None
    """Lets what it does come to its end, for one that SIGTERM ends at once."""


class Supervisor:
    """Runs programs until `stop`, each in a session of its own, so that Ctrl-C reaches us alone.

    Args:
        programs: What to run, in the order in which to start; stopped in reverse.
        log_dir: Where `{name}.log` is appended to with all a program prints.
        say: Is told every start that was not asked for, and why.
    """

    def __init__(
        self, programs: Sequence[Program], log_dir: Path, say: Callable[[str], None]
    ) -> None:
        self._programs = programs
        self._log_dir = log_dir
        self._say = say
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to keep every program running."""
        for program in self._programs:
            self._tasks[program.name] = asyncio.create_task(self._keep(program))

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when every program is ready.

        Raises:
            SettingsRefusedError: One refused its settings; the message is its own.
            TimeoutError: One was not, in time; the message names it and its log.
        """
        deadline = time.monotonic() + timeout_s
        for program in self._programs:
            while not await _is_ready(program):
                for task in self._tasks.values():
                    if task.done():
                        await task
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"{program.name} was not ready within {timeout_s:.0f} s; see"
                        f" {self._log_dir / program.name}.log"
                    )
                await asyncio.sleep(0.05)

    async def stop(self, grace_s: float) -> None:
        """Ask every program to drain, the last one first; kill what has not ended in time."""
        for program in reversed(self._programs):
            self._tasks[program.name].cancel()
            process = self._processes.get(program.name)
            if process is None or process.returncode is not None:
                continue
            if program.drain:
                with contextlib.suppress(OSError, TimeoutError):
                    await asyncio.wait_for(program.drain(), grace_s)
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                self._say(f"{program.name} did not stop within {grace_s:.0f} s; killed")
                process.kill()
                await process.wait()

    async def _keep(self, program: Program) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            started = time.monotonic()
            with (self._log_dir / f"{program.name}.log").open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *program.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, STOP_WITH_PARENT: "1"},
                    start_new_session=True,
                )
            self._processes[program.name] = process
            status = await process.wait()
            if status == _SETTINGS_REFUSED:
                raise SettingsRefusedError(f"{program.name}: {_last_line(log.name)}")
            if time.monotonic() - started > STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            self._say(f"{program.name} {_ended(status)}; starting it again in {backoff_s:.2f} s")
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


async def _is_ready(program: Program) -> bool:
    with contextlib.suppress(OSError):
        return await program.ready()
    return False


def _last_line(log: str) -> str:
    return Path(log).read_text(errors="replace").rstrip().rpartition("\n")[2]


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"

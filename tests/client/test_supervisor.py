"""The supervisor keeps real processes running."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from servery.cli.supervisor import Program, SettingsRefusedError, Supervisor

SLEEPER = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


def program(name: str, code: str, pid_file: Path) -> Program:
    def started() -> bool:
        return bool(pid_file.read_text())

    return Program(
        name, [sys.executable, "-c", code, str(pid_file)], lambda: asyncio.to_thread(started)
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_what_dies_is_started_again_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    pid_file = tmp_path / "pid"
    supervisor = Supervisor([program("sleeper", SLEEPER, pid_file)], tmp_path, said.append)
    supervisor.start()
    await supervisor.wait_ready(10)
    first = int(pid_file.read_text())
    pid_file.unlink()
    os.kill(first, signal.SIGKILL)
    await supervisor.wait_ready(10)
    second = int(pid_file.read_text())
    assert second != first
    assert "SIGKILL" in said[0]
    await supervisor.stop(5)
    assert not alive(second)


async def test_what_does_not_stop_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    pid_file = tmp_path / "pid"
    supervisor = Supervisor([program("deaf", DEAF, pid_file)], tmp_path, said.append)
    supervisor.start()
    await supervisor.wait_ready(10)
    await asyncio.wait_for(supervisor.stop(0.2), 5)
    assert not alive(int(pid_file.read_text()))
    assert "killed" in said[-1]


async def test_what_never_gets_ready_is_named(tmp_path: Path) -> None:
    never = Program("broken", [sys.executable, "-c", "raise SystemExit(3)"], _never)
    said: list[str] = []
    supervisor = Supervisor([never], tmp_path, said.append)
    supervisor.start()
    with pytest.raises(TimeoutError, match=r"broken.*broken\.log"):
        await supervisor.wait_ready(0.5)
    await supervisor.stop(1)
    assert "status 3" in said[0]


async def test_refused_settings_are_told_and_not_tried_again(tmp_path: Path) -> None:
    refuses = "import sys; print('usage: …'); print('x: error: port is bad'); sys.exit(2)"
    supervisor = Supervisor(
        [Program("picky", [sys.executable, "-c", refuses], _never)], tmp_path, lambda _: None
    )
    supervisor.start()
    with pytest.raises(SettingsRefusedError, match="picky: x: error: port is bad"):
        await supervisor.wait_ready(20)
    await supervisor.stop(1)


async def _never() -> bool:
    return False

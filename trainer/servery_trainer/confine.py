"""Keep the process of a training job within bounds: `python -I -S confine.py BOUNDS COMMAND...`.

This program stands between the trainer and the job, as the parent of all the job ever starts. When
the job ends or the trainer dies, whatever is left of them is killed, also what hid in a session of
its own. It ends as the job did. `probe` in place of BOUNDS tells by the exit status whether the job
can be kept off the network here.

A program of its own, since Python code in a forked copy of a process with threads (`preexec_fn`)
can deadlock. Imports nothing but the standard library.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000

END: Final = signal.SIGUSR1
"""Sent to this program: kill everything now. The kernel sends it when the trainer dies."""

_MAX_FILES: Final = 4096
_MAX_PROCESSES: Final = 4096  # Threads too, of the whole user; the kernel does not hold root to it.


def main() -> None:
    """Run the command to its end, and end like it."""
    if sys.argv[1:] == ["probe"]:
        sys.exit(0 if _leave_network() else 1)
    bounds, command = json.loads(sys.argv[1]), sys.argv[2:]
    # SIGTERM goes to the whole group. It is for the job; this one stays to clean up.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(END, _end)
    _prctl(_PR_SET_PDEATHSIG, END)
    if os.getppid() != bounds["parent"]:  # It died before it could be told to take this one along.
        sys.exit(1)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    status = 1
    try:
        job = os.fork()
        if job == 0:
            _become(command, bounds)
        if signal.SIGTERM in signal.sigpending():  # It came before there was a job to get it.
            os.kill(job, signal.SIGTERM)
        ended = 0
        while ended != job:
            ended, status = os.waitpid(-1, 0)
    finally:
        _kill_all()
    _end_like(os.waitstatus_to_exitcode(status))


def _become(command: list[str], bounds: Mapping[str, Any]) -> NoReturn:
    """Turn this process into the job."""
    keeper = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    os.nice(bounds["niceness"])
    os.sched_setaffinity(0, bounds["cpus"])
    for limit, most in (
        (resource.RLIMIT_AS, bounds["address_space_bytes"]),
        (resource.RLIMIT_DATA, bounds["memory_bytes"]),
        (resource.RLIMIT_CPU, bounds["cpu_s"]),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
    ):
        if most:
            _limit(limit, most)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _leave_network()
    signal.signal(END, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.execv(command[0], command)  # noqa: S606 the command is the trainer's own


def _limit(limit: int, most: int) -> None:
    """Lower a limit; one that is lower already stays."""
    _, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(limit, (most, most))


def _leave_network() -> bool:
    """Move to a network without an interface, where the kernel permits it; tell whether it did."""
    unshare = ctypes.CDLL(None).unshare
    if unshare(_CLONE_NEWNET) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):  # Else it is nobody's process, which works, too.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def _end(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGKILL)


def _kill_all() -> None:
    """Kill every process below this one: those whose parent is killed become its children."""
    signal.signal(END, signal.SIG_IGN)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in children.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
            os.waitpid(-1, 0)


def _end_like(exit_code: int) -> NoReturn:
    """End with the exit status of the job, or by the signal that ended it."""
    if exit_code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -exit_code != signal.SIGKILL:
            signal.signal(-exit_code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-exit_code})
        os.kill(os.getpid(), -exit_code)
    sys.exit(exit_code)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main()

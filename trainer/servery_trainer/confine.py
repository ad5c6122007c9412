"""Become the process of a training job: `python -I -S confine.py PARENT NICE BYTES COMMAND...`.

Runs between fork and exec, but as a program of its own: Python code in a forked copy of a process
with threads (`preexec_fn`) can deadlock. Imports nothing but the standard library.
"""

import ctypes
import os
import resource
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Give way to everyone else, stay under the memory limit, and die with the parent."""
    parent, niceness, memory_bytes, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # It died before it could be told to take this one along.
        sys.exit(1)
    os.nice(int(niceness))
    if limit := int(memory_bytes):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.execv(command[0], command)  # noqa: S606 the command is the trainer's own


if __name__ == "__main__":
    main()

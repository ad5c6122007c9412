"""Shut a process in before it runs what others wrote: `python -I -S sandbox.py RULES COMMAND...`.

RULES is JSON: `{"read": [path, ...], "write": [path, ...]}`. The command, and all it ever starts,
can open nothing but what lies at or below these paths and what every program needs, by Landlock;
it has no sockets, starts no processes, signals nobody, changes neither owners nor modes nor its own
limits, by a seccomp filter; it has no privileges, however it was started; and no file it writes
grows without end. There is no way back.
Where the kernel cannot do all of this, the command is not run (exit status 1). `probe` in place of
RULES tells by the exit status whether it can.

A program of its own, since only what a process does before its first thread holds for all of them.
Imports nothing but the standard library. The numbers are those of the kernel's interface on x86-64:
https://docs.kernel.org/userspace-api/landlock.html and .../seccomp_filter.html.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

_MACHINE: Final = "x86_64"
_ABI: Final = 3
"""Of Landlock: the first that holds truncation, Linux 6.2."""

MAX_FILE_BYTES: Final = 4 * 1024**3

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_PR_GET_SECCOMP: Final = 21
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522

_CAPSET: Final = 126
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_ALL_ACCESS: Final = (1 << 15) - 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_TRUNCATE: Final = 1 << 14
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
# No links, FIFOs or devices: others read these files later, with more rights.
_WRITE: Final = (
    _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR
) | _MAKE_REG

_PROGRAMS_READ: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"),
    *("/dev/urandom", "/dev/random", "/dev/zero", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),
    *("/proc/self", "/proc/sys/vm/overcommit_memory"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node"),
)
"""What any program may need, as far as it is there; nothing in it is anybody's secret."""

_PROGRAMS_WRITE: Final = ("/dev/null",)

_AUDIT_ARCH_X86_64: Final = 0xC000003E
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW: Final = 0x7FFF0000
_KILL_PROCESS: Final = 0x80000000
_EPERM: Final = 0x00050001
_ENOSYS: Final = 0x00050026

_CLONE, _CLONE3, _CLONE_THREAD = 56, 435, 0x10000
_TGKILL, _PRLIMIT64 = 234, 302
_FIRST_UNKNOWN: Final = 463
"""System calls from here on are younger than the list below; also those of the x32 interface."""

_REFUSED: Final = (
    *(41, 53, 425, 426, 427),  # socket, socketpair, io_uring_*
    *(57, 58),  # fork, vfork
    *(62, 129, 200, 297, 424, 434, 438, 448),  # kill and its kin, pidfd_*, process_mrelease
    *(101, 310, 311, 312, 440, 256, 279),  # ptrace, process_vm_*, kcmp, process_madvise, pages
    *(141, 142, 144, 203, 251, 314, 160),  # priorities, affinity, setrlimit
    *(76, 90, 91, 268, 452, 92, 93, 94, 260),  # truncate, chmod and chown in all forms
    *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # utime*, setxattr*, removexattr*
    *(253, 254, 294, 300, 301, 303, 304),  # inotify_*, fanotify_*, *_handle_at
    *(29, 30, 31, 64, 65, 66, 68, 69, 70, 71, 220, 240, 241),  # System V and POSIX queues, memory
    *(155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),  # mounts, namespaces
    *(248, 249, 250, 298, 321, 323),  # keys, perf_event_open, bpf, userfaultfd
    *(103, 135, 153, 154, 159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179),
    *(227, 246, 305, 313, 320, 443),  # modules, clocks, swap, quotas and what else is for root
)

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Shut this process in, then become the command."""
    rules, command = sys.argv[1], sys.argv[2:]
    paths = {"read": [], "write": []} if rules == "probe" else json.loads(rules)
    try:
        shut_in(paths["read"], paths["write"])
    except OSError as error:
        sys.exit(f"this kernel cannot shut a process in: {error.strerror}")
    if command:
        os.execv(command[0], command)  # noqa: S606 the command is the trainer's own


def shut_in(read: Sequence[str], write: Sequence[str]) -> None:
    """Take from this process, for ever, all but what the module docstring says it keeps.

    Args:
        read: Files and directories that it may read; all must be there.
        write: Files and directories that it may also write.

    Raises:
        OSError: The kernel cannot do it, or a path is not there; the process may be shut in partly.
    """
    if platform.machine() != _MACHINE:
        raise OSError(None, f"it is for {_MACHINE} only")
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION_3, 0))
    _syscall(_CAPSET, header, ctypes.create_string_buffer(24))
    _restrict_files(
        [
            *((path, _READ) for path in read),
            *((path, _READ) for path in _PROGRAMS_READ if Path(path).exists()),
            *((path, _WRITE) for path in (*_PROGRAMS_WRITE, *write)),
        ]
    )
    _restrict_calls(os.getpid())


def is_shut_in() -> bool:
    """Tell whether this process is; asked for by those who would not go on if it were not."""
    try:
        next(Path("/").iterdir())
    except PermissionError:
        filtered = _check(_libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0)) == _SECCOMP_MODE_FILTER
        return filtered and _check(_libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)) == 1
    return False


def _restrict_files(rules: Iterable[tuple[str, int]]) -> None:
    version = _syscall(_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    if version < _ABI:
        raise OSError(None, f"its Landlock is of version {version}, not {_ABI}")
    handled = ctypes.create_string_buffer(struct.pack("Q", _ALL_ACCESS), 8)
    ruleset = _syscall(_LANDLOCK_CREATE_RULESET, handled, 8, 0)
    for path, access in rules:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = access if Path(path).is_dir() else access & _OF_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place), 12)
        _syscall(_LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
        os.close(place)
    _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _restrict_calls(pid: int) -> None:
    nr, architecture, first, third = 0, 4, 16, 32  # offsets in struct seccomp_data
    program = [
        *(_if(_LOAD, architecture), _if(_EQUAL, _AUDIT_ARCH_X86_64, 1), _return(_KILL_PROCESS)),
        *(_if(_LOAD, nr), _if(_AT_LEAST, _FIRST_UNKNOWN, 0, 1), _return(_ENOSYS)),
        # The flags of this one are out of sight; the C library falls back to the older one.
        *(_if(_EQUAL, _CLONE3, 0, 1), _return(_ENOSYS)),
        *(_if(_EQUAL, _CLONE, 0, 4), _if(_LOAD, first), _if(_ANY_BIT, _CLONE_THREAD, 0, 1)),
        *(_return(_ALLOW), _return(_EPERM)),
        *(_if(_EQUAL, _TGKILL, 0, 4), _if(_LOAD, first), _if(_EQUAL, pid, 0, 1)),
        *(_return(_ALLOW), _return(_EPERM)),
        # Asking for limits is no harm: then the third argument is null, in both its halves.
        *(_if(_EQUAL, _PRLIMIT64, 0, 6), _if(_LOAD, third), _if(_EQUAL, 0, 0, 3)),
        *(_if(_LOAD, third + 4), _if(_EQUAL, 0, 0, 1)),
        *(_return(_ALLOW), _return(_EPERM)),
    ]
    for number in _REFUSED:
        program += [_if(_EQUAL, number, 0, 1), _return(_EPERM)]
    program.append(_return(_ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    fprog = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(fprog)))


def _if(operation: int, value: int, then_skip: int = 0, else_skip: int = 0) -> bytes:
    return struct.pack("HBBI", operation, then_skip, else_skip, value)


def _return(value: int) -> bytes:
    return _if(_RETURN, value)


def _syscall(number: int, *arguments: object) -> int:
    """Make a system call; whole numbers are passed as machine words."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *words))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    main()

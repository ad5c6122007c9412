"""What a process that is shut in can still do, tried from inside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from servery_trainer import sandbox
from servery_trainer.local_executor import SANDBOX, can_shut_in, installation

if subprocess.run([*SANDBOX, "probe"], check=False, capture_output=True).returncode:
    pytest.skip("the kernel has no Landlock", allow_module_level=True)

DENIED = "PermissionError"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sandbox")
    for name in ("own", "other"):
        (directory / name).mkdir()
        (directory / name / "data").write_text(name)
    (directory / "input").write_text("input")
    return directory


def inside(place: Path, statement: str) -> str:
    """What `statement` comes to: `fine`, the name of what it raises, or how the process ended."""
    program = (
        "import ctypes, mmap, os, resource, signal, socket, subprocess, threading\n"
        f"from pathlib import Path\nplace = Path({str(place)!r})\n"
        f"try:\n    {statement}\n    print('fine')\n"
        "except BaseException as error:\n    print(type(error).__name__)\n"
    )
    rules = json.dumps(
        {"read": [*installation(), str(place / "input")], "write": [str(place / "own")]}
    )
    ended = subprocess.run(
        [*SANDBOX, rules, sys.executable, "-I", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.stdout.strip() or f"exit status {ended.returncode}: {ended.stderr}"


@pytest.mark.parametrize(
    ("statement", "outcome"),
    [
        pytest.param("(place / 'input').read_text()", "fine", id="reads its input"),
        pytest.param("(place / 'own/new').write_text('')", "fine", id="writes what is its own"),
        pytest.param("os.replace(place / 'own/data', place / 'own/kept')", "fine", id="renames"),
        pytest.param("(place / 'own/a').mkdir()", "fine", id="makes directories"),
        pytest.param(
            "t = threading.Thread(target=int); t.start(); t.join()", "fine", id="has threads"
        ),
        pytest.param("resource.getrlimit(resource.RLIMIT_AS)", "fine", id="knows its limits"),
        pytest.param("import sqlite3, zoneinfo", "fine", id="imports"),
        pytest.param("open('/etc/passwd')", DENIED, id="passwords"),
        pytest.param("open(place / 'other/data')", DENIED, id="data of others"),
        pytest.param("os.listdir(place)", DENIED, id="names of others"),
        pytest.param("os.listdir('/proc')", DENIED, id="processes"),
        pytest.param("open(f'/proc/{os.getppid()}/environ')", DENIED, id="environment of others"),
        pytest.param("open('/proc/self/root/etc/passwd')", DENIED, id="another way there"),
        pytest.param("(place / 'input').write_text('')", DENIED, id="changes its input"),
        pytest.param("os.truncate(place / 'input', 0)", DENIED, id="empties its input"),
        pytest.param("(place / 'own/x').symlink_to('/etc/passwd')", DENIED, id="links elsewhere"),
        pytest.param("os.link(place / 'input', place / 'own/x')", "OSError", id="links to a file"),
        pytest.param("os.mkfifo(place / 'own/x')", DENIED, id="pipes for others"),
        pytest.param("os.chmod(place / 'other/data', 0o777)", DENIED, id="modes"),
        pytest.param("os.utime(place / 'other/data')", DENIED, id="times"),
        pytest.param("socket.socket()", DENIED, id="sockets"),
        pytest.param("socket.socketpair(type=socket.SOCK_DGRAM)", DENIED, id="socket pairs"),
        pytest.param("os.fork()", DENIED, id="forks"),
        pytest.param("subprocess.run(['true'])", DENIED, id="programs"),
        pytest.param("os.kill(os.getppid(), 0)", DENIED, id="signals"),
        pytest.param("os.pidfd_open(os.getppid())", DENIED, id="handles of processes"),
        pytest.param("os.setpriority(os.PRIO_PROCESS, 0, 0)", DENIED, id="priorities"),
        pytest.param(
            "resource.prlimit(0, resource.RLIMIT_FSIZE, (-1, -1))", DENIED, id="its own limits"
        ),
        pytest.param(
            "f = open(place / 'own/big', 'wb'); f.truncate(1 << 40)", "OSError", id="huge files"
        ),
    ],
)
def test_only_what_is_its_own_can_be_reached(place: Path, statement: str, outcome: str) -> None:
    assert inside(place, statement) == outcome


def test_privileges_are_gone(place: Path) -> None:
    told = (
        "status = Path('/proc/self/status').read_text(); assert 'CapEff:\\t' + '0' * 16 in status"
    )
    assert inside(place, f"{told}; assert 'NoNewPrivs:\\t1' in status") == "fine"


def test_a_process_knows_whether_it_is_shut_in(place: Path) -> None:
    known = "import servery_trainer.sandbox as sandbox; assert sandbox.is_shut_in()"
    assert inside(place, known) == "fine"
    assert not sandbox.is_shut_in()


def test_nothing_is_run_where_a_path_to_allow_is_missing(place: Path) -> None:
    rules = json.dumps({"read": [str(place / "missing")], "write": []})
    ended = subprocess.run(
        [*SANDBOX, rules, sys.executable, "-c", "print('ran')"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert str(place) not in ended.stderr


def test_code_of_tenants_is_not_run_beside_their_data(tmp_path: Path) -> None:
    assert can_shut_in(tmp_path)
    assert not can_shut_in(Path(os.__file__).parent / "data")

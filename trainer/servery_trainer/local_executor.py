"""Runs training jobs as processes of this machine, each kept within bounds by `confine`.

The process of a job says on stdout, one JSON object a line, `{"progress": Progress}` any number of
times, then `{"result": TrainingResult}` and exits 0, or `{"error": {reason, message, metadata}}`
and exits 1. Any other end is a crash.

A job with code of its tenant's own is shut in by `sandbox`, too: it sees the installation, its spec
and its data, nothing of the environment of the trainer, and writes in directories of its own.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

import servery
import servery_rpc
import servery_trainer
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import confine, sandbox
from servery_trainer.custom_code import is_custom
from servery_trainer.durable import sync_directory
from servery_trainer.executor import ENVIRONMENT, Work
from servery_trainer.jobs import Crashed, Outcome, crash

log = logging.getLogger(__name__)

JOB_COMMAND: Final = (sys.executable, "-m", "servery_trainer.job")
_MAX_LINE_BYTES: Final = 64 * 1024**2
CONFINE: Final = (sys.executable, "-I", "-S", str(Path(confine.__file__)))
"""The program that keeps a job within bounds."""

SANDBOX: Final = (sys.executable, "-I", "-S", str(Path(sandbox.__file__)))
"""The program that shuts a job in."""

_KEPT_VARIABLES: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")
"""What a job that is shut in sees of the trainer's environment."""

_KILL_S: Final = 5.0
_NICENESS: Final = 10  # Of 19: training gives way to serving on the same machine.


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """An `Executor` of processes on this machine (Linux) that die with the one that started them.

    Call `run` from the main thread: the kernel ends the process when the *thread* that started it
    ends.
    """

    address_space_bytes: int = 0
    """Address space each process may use, beside its memory; 0 means no limit."""

    grace_s: float = 10.0
    """Seconds from SIGTERM to SIGKILL."""

    command: Sequence[str] = JOB_COMMAND
    """The program of a job, an absolute path first."""

    _busy: Counter[int] = field(default_factory=Counter)
    """How many jobs run on each CPU."""

    async def run(self, work: Work, on_progress: Callable[[pb.Progress], None]) -> Outcome:
        """See `Executor`."""
        await asyncio.to_thread(_prepare, work)
        with (
            self._cpus(work.resources.cores) as cpus,
            self._start(work, cpus) as process,
            _exit_of(process) as exited,
        ):
            said = _Said(on_progress, work.name)
            reading = asyncio.create_task(said.listen(process))
            try:
                await exited.wait()
            finally:
                stopping = asyncio.create_task(self._stop(process, exited, reading))
                while not stopping.done():  # Cancelled again or not: nothing may be left running.
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.shield(stopping)
        outcome = said.outcome(process.returncode, work.resources.memory_bytes)
        if isinstance(outcome, pb.TrainingResult):
            await asyncio.to_thread(_make_durable, work.bundle)
        return outcome

    @contextmanager
    def _cpus(self, count: int) -> Iterator[Sequence[int]]:
        """Choose the CPUs that the fewest jobs run on."""
        chosen = sorted(os.sched_getaffinity(0), key=lambda cpu: (self._busy[cpu], cpu))[:count]
        self._busy.update(chosen)
        try:
            yield chosen
        finally:
            self._busy.subtract(chosen)

    def _start(self, work: Work, cpus: Sequence[int]) -> subprocess.Popen[bytes]:
        cores, limit_s = work.resources.cores, work.time_limit_s
        bounds = {
            "parent": os.getpid(),
            "niceness": _NICENESS,
            "cpus": cpus,
            "address_space_bytes": self.address_space_bytes,
            "memory_bytes": work.resources.memory_bytes,
            "cpu_s": 0 if limit_s is None else math.ceil(cores * (limit_s + self.grace_s)),
        }
        shut_in = is_custom(work.spec)
        with work.log_path.open("ab") as job_log:
            return subprocess.Popen(  # noqa: S603 the trainer's own program
                [
                    *(*CONFINE, json.dumps(bounds)),
                    *((*SANDBOX, json.dumps(_rules(work))) if shut_in else ()),
                    *self.command,
                    *("--spec", str(work.spec_path)),
                    *("--dataset", str(work.dataset)),
                    *("--out", str(work.bundle)),
                    *("--checkpoint-dir", str(work.checkpoint)),
                    *("--threads", str(cores)),
                    *(("--base", str(work.base)) if work.base else ()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=job_log,
                env=(_bare_environment(work) if shut_in else os.environ) | ENVIRONMENT,
                cwd=work.scratch if shut_in else None,
                start_new_session=True,  # Its own group, so that a signal reaches all of it.
            )

    async def _stop(
        self,
        process: subprocess.Popen[bytes],
        exited: asyncio.Event,
        reading: asyncio.Task[None],
    ) -> None:
        """End the process if it runs, in any case what it left behind, and hear it out."""
        if not exited.is_set():
            os.killpg(process.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(self.grace_s):
                    await exited.wait()
            except TimeoutError:
                log.warning("process %s ignores SIGTERM, it is killed", process.pid)
                os.kill(process.pid, confine.END)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KILL_S):
                        await exited.wait()
        # Not waited for yet, so the id is still that of this group.
        os.killpg(process.pid, signal.SIGKILL)
        await exited.wait()
        await reading
        process.wait()


@contextmanager
def _exit_of(process: subprocess.Popen[bytes]) -> Iterator[asyncio.Event]:
    """Yield what is set when the process has ended; asyncio's own wait is for its pipes too."""
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        exited.set()

    loop.add_reader(descriptor, ended)
    try:
        yield exited
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@dataclass(slots=True)
class _Said:
    """What a process said on its stdout."""

    on_progress: Callable[[pb.Progress], None]
    name: str
    result: pb.TrainingResult | None = None
    error: pb.JobError | None = None
    garbage: list[bytes] = field(default_factory=list)

    async def listen(self, process: subprocess.Popen[bytes]) -> None:
        """Take in all lines. A line too long to hold is the end of the process."""
        lines = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), process.stdout
        )
        try:
            async for line in lines:
                self._take(line)
        except ValueError:
            log.error("%s wrote a line of more than %s bytes", self.name, _MAX_LINE_BYTES)
            os.killpg(process.pid, signal.SIGKILL)
        finally:
            transport.close()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if "progress" in message:
                self.on_progress(_parse(message["progress"], pb.Progress()))
            elif "result" in message:
                self.result = _parse(message["result"], pb.TrainingResult())
                self.result.version = ""  # The registry gives it.
            else:
                self.error = _parse(message["error"], pb.JobError())
        except (ValueError, TypeError, KeyError, RecursionError, json_format.ParseError):
            log.warning("%s wrote what is no message: %.200r", self.name, line)

    def outcome(self, status: int, memory_bytes: int) -> Outcome:
        """Judge the end of the process by what it said and its exit status."""
        if status == 0 and self.result is not None:
            return self.result
        if status == 1 and self.error is not None and self.error.reason:
            return self.error
        words = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        limit = f"; it may use {memory_bytes} bytes of memory" if memory_bytes else ""
        return Crashed(
            crash(
                words,
                f"the training process ended without a result ({words}){limit}; the log of the job"
                " may tell the cause",
            )
        )


def network_is_closed() -> bool:
    """Tell whether jobs are kept off the network: the kernel may not permit it. Blocks."""
    return subprocess.run([*CONFINE, "probe"], check=False).returncode == 0  # noqa: S603 our own


def can_shut_in(data_dir: Path) -> bool:
    """Tell whether code of tenants can be run here and see nothing of `data_dir`. Blocks."""
    probe = subprocess.run([*SANDBOX, "probe"], check=False, capture_output=True)  # noqa: S603 our own
    return probe.returncode == 0 and not any(
        data_dir.resolve().is_relative_to(root) for root in installation()
    )


def installation() -> list[str]:
    """Return the directories of Python, of the libraries and of the trainer's own modules."""
    packages = (servery, servery_rpc, servery_trainer)
    roots = {
        *(sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()),
        *(str(Path(package.__path__[0]).parent) for package in packages),
    }
    return sorted({str(Path(root).resolve()) for root in roots if Path(root).is_dir()})


def _rules(work: Work) -> dict[str, list[str]]:
    """Return what a job that is shut in may read and write, as `sandbox` takes it."""
    return {
        "read": [
            *installation(),
            *map(str, (work.spec_path, *work.dataset.parent.glob(f"{work.dataset.name}*"))),
            *((str(work.base),) if work.base else ()),
        ],
        "write": [str(path) for path in (work.bundle, work.checkpoint, work.scratch)],
    }


def _bare_environment(work: Work) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    own = {"HOME": str(work.scratch), "TMPDIR": str(work.scratch), "PYTHONSAFEPATH": "1"}
    return kept | own


def _prepare(work: Work) -> None:
    """Make the directory as a first attempt finds it, but for the log, which grows."""
    work.directory.mkdir(parents=True, exist_ok=True)
    if work.bundle.exists():
        shutil.rmtree(work.bundle)
    if is_custom(work.spec):
        shutil.rmtree(work.scratch, ignore_errors=True)
        for path in (work.bundle, work.checkpoint, work.scratch):
            path.mkdir(exist_ok=True)
    work.spec_path.write_text(json_format.MessageToJson(work.spec))


def _make_durable(bundle: Path) -> None:
    for path in bundle.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(bundle)
    sync_directory(bundle.parent)


def _parse(value: Any, message: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(value)
    return json_format.ParseDict(value, message, ignore_unknown_fields=True)

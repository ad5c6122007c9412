"""Jobs run by tests: each in a process of its own, or many in one."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.executor import ENVIRONMENT
from servery_trainer.spec import parse_spec

SUCCESSIVE = Path(__file__).with_name("successive_jobs.py")


@dataclass(frozen=True)
class Run:
    """What a job said and left."""

    exit: int
    lines: list[dict[str, Any]]
    out: Path

    @property
    def result(self) -> pb.TrainingResult:
        return json_format.ParseDict(self.lines[-1]["result"], pb.TrainingResult())

    def sha256(self, name: str) -> str:
        """Return the digest of a file: what pytest shows of two that differ is short, then."""
        return hashlib.sha256((self.out / name).read_bytes()).hexdigest()

    def document(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())


def start(
    spec: pb.TrainingSpec, dataset: Path, out: Path, *options: str | Path
) -> subprocess.Popen[str]:
    """Start the process of a job as the service does."""
    paths = ["--spec", _written(spec, out), "--dataset", dataset, "--out", out, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "servery_trainer.job", *map(str, paths), "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | ENVIRONMENT,
    )


def run(spec: pb.TrainingSpec, dataset: Path, out: Path, *options: str | Path) -> Run:
    """Run a job in a process of its own."""
    with start(spec, dataset, out, *options) as process:
        assert process.stdout is not None
        lines = [json.loads(line) for line in process.stdout]
    return Run(process.returncode, lines, out)


def run_interrupted(spec: pb.TrainingSpec, dataset: Path, out: Path, checkpoints: Path) -> Run:
    """Run a job that is killed, then stopped, each time two epochs further; then let it end."""
    store, reached = ("--checkpoint-dir", checkpoints), 0
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        with start(spec, dataset, out, *store) as process:
            assert process.stdout is not None
            epochs = []
            for line in process.stdout:
                progress = json.loads(line)["progress"]
                if progress["phase"] == "PHASE_TRAINING" and "step" in progress:
                    epochs.append(progress.get("epoch", 0))
                    if epochs[-1] >= reached + 2:
                        break
            process.send_signal(number)
            process.stdout.read()  # whoever nobody listens to ends otherwise
        assert epochs[0] >= reached  # went on, did not begin anew
        assert process.returncode == status
        reached = epochs[-1]
    return run(spec, dataset, out, *store)


class SuccessiveJobs:
    """A process that runs one job after the other: to load a framework takes it longer.

    After a job that it did not survive comes another process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, spec: pb.TrainingSpec, dataset: Path, out: Path, base: Path | None = None) -> Run:
        """Run a job; `base` holds the files of the version that it starts from."""
        paths = [_written(spec, out), dataset, out, *([base] if base else [])]
        self._process = self._process or _waiting()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        lines: list[dict[str, Any]] = []
        try:
            self._process.stdin.write(json.dumps([*map(str, paths)]) + "\n")
            self._process.stdin.flush()
            while not lines or "progress" in lines[-1]:
                lines.append(json.loads(self._process.stdout.readline()))
        except BaseException:
            self.close()  # What it would say now is no answer to whoever asks next.
            raise
        return Run(0 if "result" in lines[-1] else 1, lines, out)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _waiting() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SUCCESSIVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )


def _written(spec: pb.TrainingSpec, out: Path) -> Path:
    path = out.with_name(f"{out.name}.json")
    path.write_text(json_format.MessageToJson(parse_spec(spec).to_proto()))
    return path

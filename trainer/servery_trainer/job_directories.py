"""The directory of each job: what is in it, and how long it stays. All of it blocks."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.names import TrainingJobName
from servery_trainer.executor import log_path
from servery_trainer.jobs import SUCCEEDED

KEEP_CHECKPOINTS: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class JobDirectories:
    """The directories of all jobs of a trainer."""

    root: Path

    def of(self, name: TrainingJobName) -> Path:
        """Return the directory of a job, which may not be there yet."""
        return self.root / name.tenant / name.job

    def log(self, name: TrainingJobName) -> Path:
        """Return the file with the log of a job, which may not be there yet."""
        return log_path(self.of(name))

    def tidy(self, job: pb.TrainingJob, now: datetime) -> None:
        """Give back the disk that an ended job has no use for any more; log and spec stay.

        A job that stopped on its way keeps its checkpoint, for a while, to be resumed from. A trial
        keeps its bundle until its study has chosen.
        """
        directory = self.of(TrainingJobName.parse(job.name))
        for name in ("scratch", "base"):
            shutil.rmtree(directory / name, ignore_errors=True)
        if not (job.study and job.state == SUCCEEDED):
            shutil.rmtree(directory / "bundle", ignore_errors=True)
        if job.study or job.state == SUCCEEDED:
            shutil.rmtree(directory / "checkpoint", ignore_errors=True)
        oldest = (now - KEEP_CHECKPOINTS).timestamp()
        for checkpoint in self.root.glob("*/*/checkpoint"):
            with contextlib.suppress(FileNotFoundError):  # Another job may tidy, too.
                if checkpoint.stat().st_mtime < oldest:
                    shutil.rmtree(checkpoint, ignore_errors=True)

    def discard_bundle(self, name: TrainingJobName) -> None:
        """Remove the bundle of a trial that was not chosen, or has been published."""
        shutil.rmtree(self.of(name) / "bundle", ignore_errors=True)


def link_files(source: Path, target: Path) -> None:
    """Make `target` a directory of the same files as `source`, without a copy of their bytes.

    Raises:
        OSError: `source` is not there.
    """
    names = sorted(path.name for path in source.iterdir())
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in names:
        os.link(source / name, target / name)

"""The port behind which training jobs run, here or elsewhere.

What an executor on other machines (Kubernetes Jobs, say) has to keep:

- The program is `python -m servery_trainer.job --spec FILE --dataset FILE --out DIRECTORY
  --checkpoint-dir DIRECTORY --threads CORES`, with `--base DIRECTORY` if there is one, in
  `ENVIRONMENT`; the files are those of `Work`, so `Work.directory` and the dataset must be the same
  storage for the trainer and for the job.
- What it says on standard output is described in `local_executor`. Standard error goes to the end
  of `Work.log_path`, as it is written: it is what callers read as the log of the job.
- `Work.resources` are requested and enforced; with other `cores` the weights differ in their last
  bits. The process has no network, and nothing it started outlives it. One whose spec names the
  family `custom` runs below the program `sandbox`, with an environment of its own; it refuses to
  run the code of its tenant if it does not.
- To be stopped it gets SIGTERM and 10 s or more to write a checkpoint, then SIGKILL. An attempt
  that starts while one of the same job may still run elsewhere would spoil the checkpoint of both.
- A death without a word (eviction, a lost node, out of memory) is `Crashed`: the scheduler tries
  again, and the next attempt finds `Work.checkpoint`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.jobs import Outcome
from servery_trainer.resources import Resources

ENVIRONMENT: Final = {"PYTHONHASHSEED": "0"}
"""Of the process of a job: the converter walks through sets, and the graph follows their order."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one process of a job is to do."""

    name: str
    """Resource name of the job."""

    spec: pb.TrainingSpec

    dataset: Path
    """The file to train on."""

    directory: Path
    """Of the job alone; made if missing, and kept."""

    resources: Resources

    time_limit_s: float | None = None
    """How long it will be let run at most; None if that is not limited."""

    @property
    def bundle(self) -> Path:
        """Directory of the files to publish; complete and durable once the outcome is a result."""
        return self.directory / "bundle"

    @property
    def checkpoint(self) -> Path:
        """Directory of how far training came; kept between attempts."""
        return self.directory / "checkpoint"

    @property
    def base(self) -> Path | None:
        """Directory with the files of the version the job starts from, if it does from one."""
        return self.directory / "base" if self.spec.base_version else None

    @property
    def scratch(self) -> Path:
        """Directory for what the process needs while it runs, if it may write in no other."""
        return self.directory / "scratch"

    @property
    def log_path(self) -> Path:
        """File with what the process wrote for people; each attempt appends."""
        return log_path(self.directory)

    @property
    def spec_path(self) -> Path:
        """File with the spec as JSON."""
        return self.directory / "spec.json"


def log_path(directory: Path) -> Path:
    """Return the file with the log of the job that has this directory."""
    return directory / "job.log"


class Executor(Protocol):
    """Runs training jobs somewhere."""

    async def run(self, work: Work, on_progress: Callable[[pb.Progress], None]) -> Outcome:
        """Do `work` and return how it ended; a crash is an outcome too.

        Cancelling this call stops the work, and the call ends only when nothing runs any more.

        Args:
            work: What to do.
            on_progress: Called on the event loop; must return at once.
        """

"""The port behind which training jobs run, here or elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.jobs import Outcome

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

    @property
    def bundle(self) -> Path:
        """Directory of the files to publish; complete and durable once the outcome is a result."""
        return self.directory / "bundle"

    @property
    def checkpoint(self) -> Path:
        """Directory of how far training came; kept between attempts."""
        return self.directory / "checkpoint"

    @property
    def spec_path(self) -> Path:
        """File with the spec as JSON."""
        return self.directory / "spec.json"


class Executor(Protocol):
    """Runs training jobs somewhere."""

    async def run(self, work: Work, on_progress: Callable[[pb.Progress], None]) -> Outcome:
        """Do `work` and return how it ended; a crash is an outcome too.

        Cancelling this call stops the work, and the call ends only when nothing runs any more.

        Args:
            work: What to do.
            on_progress: Called on the event loop; must return at once.
        """

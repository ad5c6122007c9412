"""The process of one training job: `python -m servery_trainer.job --spec --dataset --out`.

Its standard output is JSON lines and nothing else: `{"progress": Progress}` as it goes, then one
`{"result": TrainingResult}` (exit status 0) or `{"error": {"reason", "message", "metadata"}}` (exit
status 1). Its standard error is the log, for people. On SIGTERM it ends at once, while training
after the present step, without either and without a bundle (exit status 143). With
`--checkpoint-dir` a second process given the same goes on where the first one ended, however it
ended.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from google.protobuf import json_format

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery.trainer.v1 import training_pb2
from servery_rpc.errors import ServeryError
from servery_trainer import custom_module
from servery_trainer.custom_code import Problem
from servery_trainer.durable import is_full
from servery_trainer.jobs import TrainingStorageFullError
from servery_trainer.networks import Custom, Family
from servery_trainer.spec import parse_spec

MIN_INTERVAL_S: Final = 0.1
"""Between two lines of progress in one phase."""

STOPPED: Final = 128 + signal.SIGTERM

log = logging.getLogger(__name__)


class Lines:
    """The JSON lines of a job.

    Args:
        output: Where they go; flushed after each.
        now: A clock that never goes back, in seconds.
    """

    def __init__(self, output: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._now = now
        self._sent = 0.0
        self._phase = training_pb2.PHASE_UNSPECIFIED
        self._held: training_pb2.Progress | None = None

    def progress(self, progress: training_pb2.Progress) -> None:
        """Write progress, unless a line of the same phase was written too short a time ago.

        How an epoch or a phase ended comes before what follows it: figures of a whole epoch are
        worth more than those of the first steps of the next one.
        """
        entered = progress.phase != self._phase
        if not entered and self._now() - self._sent < MIN_INTERVAL_S:
            if not _ends_epoch(self._held) or _ends_epoch(progress):
                self._held = progress
            return
        if self._held is not None and (entered or _ends_epoch(self._held)):
            self._write_progress(self._held)
        self._write_progress(progress)

    def _write_progress(self, progress: training_pb2.Progress) -> None:
        self._held = None
        self._phase, self._sent = progress.phase, self._now()
        self._write({"progress": json_format.MessageToDict(progress)})

    def result(self, result: training_pb2.TrainingResult) -> None:
        """Write what came out."""
        self._write({"result": json_format.MessageToDict(result)})

    def error(
        self, reason: ErrorReason.ValueType, message: str, metadata: Mapping[str, str]
    ) -> None:
        """Write why nothing came out."""
        error = {"reason": ErrorReason.Name(reason), "message": message, "metadata": dict(metadata)}
        self._write({"error": error})

    def _write(self, line: Any) -> None:
        self._output.write(json.dumps(line) + "\n")
        self._output.flush()


def _ends_epoch(progress: training_pb2.Progress | None) -> bool:
    return progress is not None and 0 < progress.steps_per_epoch == progress.step


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; the only place that touches the streams and signals of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m servery_trainer.job", description="Run one training job."
    )
    parser.add_argument("--spec", type=Path, required=True, help="TrainingSpec as JSON")
    parser.add_argument("--dataset", type=Path, required=True, help="file of the dataset")
    parser.add_argument("--out", type=Path, required=True, help="directory for the bundle")
    parser.add_argument(
        "--checkpoint-dir", type=Path, help="directory to go on from if it holds a checkpoint"
    )
    parser.add_argument("--base", type=Path, help="directory with the files of the base version")
    parser.add_argument("--threads", type=int, default=1, help="threads to compute with [1]")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    lines = Lines(_claim_stdout())

    story = _Story()

    def report(progress: training_pb2.Progress) -> None:
        story.tell(progress)
        lines.progress(progress)
        stop.between_steps(progress.phase)

    try:
        report(training_pb2.Progress(phase=training_pb2.PHASE_STARTING))
        spec = parse_spec(json_format.Parse(args.spec.read_bytes(), training_pb2.TrainingSpec()))
        if isinstance(spec.family, Custom):
            custom_module.check_syntax(spec.family)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from servery_trainer import pipeline  # takes seconds: say STARTING first

        with _answered_for(spec.family, story):
            result = pipeline.run(
                *(spec, args.dataset, args.out, args.threads, report),
                *(args.checkpoint_dir, args.base),
            )
        lines.result(result)
    except ServeryError as error:
        lines.error(error.reason, str(error), error.metadata)
        return 1
    except BrokenPipeError:
        return 1  # nobody listens any more
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            full = TrainingStorageFullError(shutil.disk_usage(args.out.parent).free)
            lines.error(full.reason, str(full), full.metadata)
            return 1
        log.exception("the job crashed")
        message = f"the process of the job failed with {type(error).__name__}; see the trainer log"
        lines.error(reasons.ERROR_REASON_TRAINING_JOB_CRASHED, message, {"exit": "1"})
        return 1
    return 0


@contextmanager
def _answered_for(family: Family, story: "_Story") -> Iterator[None]:
    """Inside, what goes wrong with a network of the caller's own is told as theirs to mend."""
    try:
        yield
    except (ServeryError, BrokenPipeError):
        raise
    except BaseException as error:
        stopped = isinstance(error, SystemExit) and error.code == STOPPED
        if stopped or not isinstance(family, Custom):
            raise
        if custom_module.frames(error):
            log.error("in the module:\n%s", "".join(custom_module.frames(error)))
        elif story.phase not in (training_pb2.PHASE_TRAINING, training_pb2.PHASE_CONVERTING):
            raise
        converting = story.phase == training_pb2.PHASE_CONVERTING
        problem: Problem = "NOT_CONVERTIBLE" if converting else "RAISED"
        raise custom_module.failure(error, problem) from error


class _Story:
    """Tells each phase and each epoch once in the log, for people."""

    def __init__(self) -> None:
        self._told: tuple[training_pb2.Phase.ValueType, int]
        self._told = (training_pb2.PHASE_UNSPECIFIED, 0)

    @property
    def phase(self) -> training_pb2.Phase.ValueType:
        """The present one."""
        return self._told[0]

    def tell(self, now: training_pb2.Progress) -> None:
        """Log what is new."""
        if self._told == (now.phase, now.epoch):
            return
        self._told = (now.phase, now.epoch)
        if now.epoch:
            figures = "  ".join(f"{name} {now.metrics[name]:.4f}" for name in sorted(now.metrics))
            log.info("epoch %s of at most %s  %s", now.epoch, now.max_epochs, figures)
        else:
            log.info(training_pb2.Phase.Name(now.phase).removeprefix("PHASE_").lower())


class _Stop:
    """A handler of SIGTERM: ends the process, but while it trains not before the step is done."""

    def __init__(self) -> None:
        self._asked = False
        self._training = False

    def __call__(self, *_: object) -> None:
        self._asked = True
        if not self._training:
            raise SystemExit(STOPPED)

    def between_steps(self, phase: training_pb2.Phase.ValueType) -> None:
        """Say what the process does next; ends it if that was asked for meanwhile."""
        self._training = phase == training_pb2.PHASE_TRAINING
        if self._asked:
            raise SystemExit(STOPPED)


def _claim_stdout() -> TextIO:
    """Return the standard output, and send what libraries print there to standard error."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return output


if __name__ == "__main__":
    sys.exit(main())

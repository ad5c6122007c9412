"""What the process of a job writes of its progress, and how often."""

import io
import json

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.job import Lines


def test_progress_comes_at_most_ten_times_a_second_but_never_without_its_end() -> None:
    output, now = io.StringIO(), 0.0
    lines = Lines(output, lambda: now)
    lines.progress(pb.Progress(phase=pb.PHASE_PREPARING))
    for epoch in range(1, 101):
        now += 0.03
        lines.progress(pb.Progress(phase=pb.PHASE_TRAINING, epoch=epoch))
    lines.progress(pb.Progress(phase=pb.PHASE_CONVERTING))
    sent = [json.loads(line)["progress"] for line in output.getvalue().splitlines()]
    epochs = [line["epoch"] for line in sent if line["phase"] == "PHASE_TRAINING"]
    assert epochs == [*range(1, 98, 4), 100]
    assert sent[-1] == {"phase": "PHASE_CONVERTING"}


def test_the_figures_of_an_epoch_are_those_of_all_of_it() -> None:
    output, now = io.StringIO(), 0.0
    lines = Lines(output, lambda: now)
    for step in range(1, 100):
        now += 0.03
        epoch, rest = divmod(step, 10)
        lines.progress(
            pb.Progress(
                phase=pb.PHASE_TRAINING,
                epoch=epoch,
                step=rest or 10,
                steps_per_epoch=10,
                metrics={"loss": rest},
            )
        )
    sent = [json.loads(line)["progress"] for line in output.getvalue().splitlines()]
    first = {line["epoch"]: line["metrics"]["loss"] for line in reversed(sent) if "epoch" in line}
    assert first == dict.fromkeys(range(1, 10), 0.0)

"""Fits a network of any framework.

The loop is our own: it can be stopped after any step and continued there with the same outcome, to
the bit on one machine.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.checkpoints import Checkpoint, CheckpointStore
from servery_trainer.examples import Examples
from servery_trainer.frameworks import Framework, Learner, Network
from servery_trainer.hyperparameters import Training
from servery_trainer.objectives import ForecastError, Objective
from servery_trainer.preprocessing import FloatArray, Preprocessing
from servery_trainer.schedules import is_constant, learning_rate
from servery_trainer.spec import ROOT

Report = Callable[[training_pb2.Progress], object]
"""Hears of each step; what it raises ends the job. SystemExit leaves a checkpoint of that step."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of the examples, preprocessed one batch at a time to keep memory small."""

    examples: Examples
    rows: NDArray[np.int64]
    preprocessing: Preprocessing

    def batches(
        self, size: int, rng: np.random.Generator | None = None, skip: int = 0
    ) -> Iterator[tuple[FloatArray, NDArray[Any]]]:
        """Yield features and `Target.values` of all rows but those of the first `skip` batches.

        In random order if `rng` is given.
        """
        rows = self.rows if rng is None else rng.permutation(self.rows)
        for start in range(skip * size, len(rows), size):
            batch = rows[start : start + size]
            yield (
                self.preprocessing.apply(self.examples.take(batch)),
                self.examples.target.values[batch],
            )


def fit(
    framework: Framework,
    network: Network,
    objective: Objective,
    train: Part,
    validation: Part,
    settings: Training,
    report: Report,
    checkpoints: CheckpointStore | None = None,
) -> list[training_pb2.Epoch]:
    """Fit `network`, stop early, and leave the weights of the epoch with the best validation loss.

    What a network of forecasts tells before the first step is epoch 0: the linear forecast, or that
    of the version it goes on from. Where no later epoch is better, what was learned is dropped.

    Args:
        framework: That the network is of.
        network: From features to outputs; changed in place.
        objective: What to fit it on.
        train: What to learn.
        validation: What to stop early by.
        settings: How.
        report: Called after each step; what it raises ends the training.
        checkpoints: Where to go on from, and where to keep how far it came after each epoch.

    Returns:
        What each epoch came to, and of forecasts epoch 0.

    Raises:
        FieldInvalidError: The loss became infinite in the first epoch; names `learning_rate`.
    """
    learner = framework.learner(network, objective, settings, train.examples.target.values)
    return _Fit(network, learner, objective, train, validation, settings, report, checkpoints).run()


@dataclass(slots=True)
class _Position:
    """Where training stands between two steps. With the variables and the order: everything."""

    number: int = 1
    """Of the present epoch."""
    step: int = 0
    """Steps done in it."""
    loss_sum: float = 0.0
    figure_sum: float = 0.0
    seen: int = 0
    epochs: list[Any] = field(default_factory=list)
    """Each an `Epoch` as JSON."""
    best_loss: float = math.inf
    """Of the epochs from 1."""
    waited: int = 0
    """Epochs since the best one of these."""
    diverged: bool = False


class _Fit:
    """One run of `fit`."""

    def __init__(
        self,
        network: Network,
        learner: Learner,
        objective: Objective,
        train: Part,
        validation: Part,
        settings: Training,
        report: Report,
        checkpoints: CheckpointStore | None,
    ) -> None:
        self._network = network
        self._learner = learner
        self._figure = objective.figure
        self._start = network.get_weights() if isinstance(objective, ForecastError) else []
        self._train = train
        self._validation = validation
        self._settings = settings
        self._report = report
        self._checkpoints = checkpoints
        self._rng = np.random.Generator(np.random.PCG64(settings.seed))
        self._order = self._rng.bit_generator.state  # at the start of the epoch
        self._steps = math.ceil(len(train.rows) / settings.batch_size)
        self._metrics: dict[str, float] = {}
        self._at = _Position()
        self._best: list[NDArray[Any]] = []
        self._resume()
        self._began, self._began_after = time.monotonic(), self._steps_done

    @property
    def _steps_done(self) -> int:
        return (self._at.number - 1) * self._steps + self._at.step

    def run(self) -> list[training_pb2.Epoch]:
        at = self._at
        if self._start and not at.epochs and not at.step:
            self._note(0, *self._judge(self._train), *self._judge(self._validation))
        while not (
            at.diverged
            or at.number > self._settings.max_epochs
            or at.waited == self._settings.early_stopping_patience
        ):
            try:
                self._pass()
            except SystemExit:
                self._save()
                raise
            self._close()
        if not self._best:
            raise FieldInvalidError(
                f"{ROOT}.training.learning_rate",
                self._settings.learning_rate,
                "be smaller: the loss became infinite in the first epoch",
            )
        epochs = [json_format.ParseDict(epoch, training_pb2.Epoch()) for epoch in at.epochs]
        learned = epochs[0].number or at.best_loss < epochs[0].validation_loss
        self._network.set_weights(self._best if learned else self._start)
        return epochs

    def _pass(self) -> None:
        """Learn from the rows of the present epoch that are left."""
        at, settings = self._at, self._settings
        batches = self._train.batches(settings.batch_size, self._rng, skip=at.step)
        name = self._figure
        for features, values in batches:
            if not is_constant(settings):
                rate = learning_rate(settings, self._steps_done, self._steps)
                self._learner.set_learning_rate(rate)
            loss, figure = self._learner.learn(features, values)
            at.step += 1
            at.loss_sum += loss
            at.figure_sum += figure
            at.seen += len(values)
            self._metrics |= {"loss": at.loss_sum / at.seen, name: at.figure_sum / at.seen}
            if at.step < self._steps:
                self._report(self._progress(at.number, at.step, done=at.number - 1))

    def _close(self) -> None:
        """End the present epoch: judge it, keep what is best, write a checkpoint."""
        at, number, name = self._at, self._at.number, self._figure
        loss, figure = at.loss_sum / at.seen, at.figure_sum / at.seen
        validation_loss, validation_figure = self._judge(self._validation)
        at.diverged = not math.isfinite(loss + validation_loss)  # weights that are NaN stay NaN
        if not at.diverged:
            self._note(number, loss, figure, validation_loss, validation_figure)
            at.waited += 1
            if validation_loss < at.best_loss:
                at.best_loss, at.waited = validation_loss, 0
                self._best = self._network.get_weights()
        at.number, at.step, at.loss_sum, at.figure_sum, at.seen = number + 1, 0, 0.0, 0.0, 0
        self._order = self._rng.bit_generator.state
        self._save()
        if not at.diverged:
            self._metrics |= {
                "val_loss": validation_loss,
                f"val_{name}": validation_figure,
            }
            self._report(self._progress(number, self._steps, done=number))

    def _note(
        self,
        number: int,
        loss: float,
        figure: float,
        validation_loss: float,
        validation_figure: float,
    ) -> None:
        """Keep what an epoch came to."""
        name = self._figure
        epoch = training_pb2.Epoch(
            number=number,
            loss=loss,
            validation_loss=validation_loss,
            metrics={name: figure, f"val_{name}": validation_figure},
        )
        if name == "accuracy":
            epoch.accuracy, epoch.validation_accuracy = figure, validation_figure
        self._at.epochs.append(json_format.MessageToDict(epoch))

    def _judge(self, part: Part) -> tuple[float, float]:
        losses, figures = 0.0, 0.0
        for features, values in part.batches(max(self._settings.batch_size, 256)):
            loss, figure = self._learner.judge(features, values)
            losses += loss
            figures += figure
        return losses / len(part.rows), figures / len(part.rows)

    def _progress(self, number: int, step: int, done: int) -> training_pb2.Progress:
        steps_done = (number - 1) * self._steps + step
        steps_left = self._settings.max_epochs * self._steps - steps_done
        seconds = time.monotonic() - self._began
        return training_pb2.Progress(
            phase=training_pb2.PHASE_TRAINING,
            epoch=done,
            max_epochs=self._settings.max_epochs,
            step=step,
            steps_per_epoch=self._steps,
            metrics=self._metrics,
            eta_s=seconds / (steps_done - self._began_after) * steps_left,
        )

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        position = asdict(self._at) | {"order": self._order}
        arrays = {**self._learner.state(), "best": self._best}
        self._checkpoints.save(Checkpoint(position, arrays))

    def _resume(self) -> None:
        checkpoint = self._checkpoints.load() if self._checkpoints else None
        if checkpoint is None:
            return
        self._learner.restore(checkpoint.arrays)
        self._best = list(checkpoint.arrays["best"])
        self._order = checkpoint.position.pop("order")
        self._rng.bit_generator.state = self._order
        self._at = _Position(**checkpoint.position)

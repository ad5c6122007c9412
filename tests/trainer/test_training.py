"""How a network is fitted, by each framework, on data small enough to fit in a second."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import problems, training
from servery_trainer.checkpoints import CheckpointStore
from servery_trainer.examples import Examples
from servery_trainer.frameworks import Framework, Network
from servery_trainer.hyperparameters import Training
from servery_trainer.networks import Dense
from servery_trainer.preprocessing import FloatArray, TablePreprocessing
from servery_trainer.split import split_rows
from servery_trainer.targets import Classes

pytestmark = pytest.mark.slow  # and the tests import frameworks, not the module: seconds saved


def settings(**changed: Any) -> Training:
    given = {
        "max_epochs": 3,
        "batch_size": 16,
        "learning_rate": 0.01,
        "early_stopping_patience": 2,
        "seed": 5,
    }
    return Training(**(given | changed))


def examples(rows: int = 90) -> Examples:
    """Two overlapping clouds of points."""
    rng = np.random.default_rng(0)
    codes = (np.arange(rows) % 3 == 0).astype(np.int64)
    points = rng.normal(codes[:, None] * 2.0, 1.0, (rows, 2)).astype(np.float32)
    return Examples(
        types={},
        inputs={"x": points[:, :1], "y": points[:, 1:]},
        target=Classes(values=codes, labels=("near", "far")),
        split=split_rows(codes, validation_fraction=0.2, test_fraction=0.2, seed=0),
        row_numbers_B=np.arange(1, rows + 1),
        total=rows,
        dropped_missing=0,
        dropped_duplicates=0,
        kept_duplicates=0,
    )


@dataclass(frozen=True)
class Trained:
    """A network, what its epochs came to, and its loss for rows held out."""

    network: Network
    epochs: list[pb.Epoch]
    loss: float


Train = Callable[..., Trained]


@pytest.fixture
def train(framework: Framework) -> Train:
    """Fits a small network."""

    def fit(
        wanted: Training,
        report: Callable[[pb.Progress], Any] = str,
        store: CheckpointStore | None = None,
        weights: Callable[[FloatArray], FloatArray] = np.asarray,
    ) -> Trained:
        data = examples()
        preprocessing = TablePreprocessing.fit(data.inputs, fill=None)
        family = Dense(hidden_units=(8,), dropout=0.2)
        network = framework.build(family, (2,), 2, 0, wanted.seed)
        network.set_weights([weights(array) for array in network.get_weights()])
        _, objective = problems.pose(data.target, np.arange(60), wanted)
        learned, held_out = (
            training.Part(data, rows, preprocessing) for rows in (np.arange(60), np.arange(60, 90))
        )
        epochs = training.fit(
            framework, network, objective, learned, held_out, wanted, report, store
        )
        ((features, codes),) = held_out.batches(1000)
        probabilities = framework.answering([network], objective).predict(features)
        told = probabilities[np.arange(len(codes)), codes].astype(np.float64)
        return Trained(network, epochs, float(-np.log(told).mean()))

    return fit


def weights(trained: Trained) -> list[FloatArray]:
    return trained.network.get_weights()


def test_reports_each_step_and_each_epoch(train: Train) -> None:
    seen: list[pb.Progress] = []
    epochs = train(settings(), seen.append).epochs
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert [(p.epoch, p.step) for p in seen[:5]] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 1)]
    assert all(p.phase == pb.PHASE_TRAINING and p.steps_per_epoch == 4 for p in seen)
    assert seen[0].eta_s > 0
    assert seen[-1].eta_s == 0
    assert set(seen[-1].metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert seen[-1].metrics["val_loss"] == epochs[-1].validation_loss


def test_learns_and_measures_what_it_learned(train: Train) -> None:
    trained = train(settings(max_epochs=20, early_stopping_patience=20))
    best = min(epoch.validation_loss for epoch in trained.epochs)
    assert best < trained.epochs[0].validation_loss
    assert trained.loss == pytest.approx(best, rel=1e-5)


def test_stops_early_and_takes_the_best_weights_back(train: Train) -> None:
    trained = train(settings(max_epochs=200, learning_rate=0.3))
    losses = [epoch.validation_loss for epoch in trained.epochs]
    assert len(losses) < 200
    assert losses.index(min(losses)) == len(losses) - 3
    assert trained.loss == pytest.approx(min(losses), rel=1e-5)


def test_the_seed_decides_the_weights(train: Train) -> None:
    first, again, other = (weights(train(settings(seed=seed))) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


def test_a_loss_that_becomes_infinite_names_the_learning_rate(train: Train) -> None:
    # no rate the contract allows does this to so small a network, so the weights start broken
    with pytest.raises(FieldInvalidError) as refused:
        train(settings(), weights=lambda array: np.full_like(array, np.inf))
    assert refused.value.metadata["field"] == "training_job.spec.training.learning_rate"


def test_ends_at_the_step_whose_report_raises(train: Train) -> None:
    seen: list[pb.Progress] = []

    def stop(progress: pb.Progress) -> None:
        seen.append(progress)
        if len(seen) == 2:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        train(settings(max_epochs=100), stop)
    assert len(seen) == 2


EVERYTHING = settings(
    max_epochs=6,
    early_stopping_patience=6,
    optimizer=pb.OPTIMIZER_SGD,
    momentum=0.9,
    schedule=pb.LEARNING_RATE_SCHEDULE_COSINE,
    warmup_epochs=2,
    l2=1e-3,
    max_gradient_norm=0.5,
    class_weights=pb.CLASS_WEIGHTS_BALANCED,
)


@pytest.mark.parametrize(
    "wanted", [settings(max_epochs=6), EVERYTHING], ids=["adam", "all settings"]
)
def test_stopped_anywhere_it_goes_on_to_the_same_weights(
    train: Train, tmp_path: Path, wanted: Training
) -> None:
    unbroken = train(wanted)
    store = CheckpointStore(tmp_path, "this training")
    first: list[tuple[int, int]] = []  # where each run began

    def run_for(steps: int) -> Any:
        seen = 0

        def report(progress: pb.Progress) -> None:
            nonlocal seen
            if not seen:
                first.append((progress.epoch, progress.step))
            seen += 1
            if seen == steps:
                raise SystemExit(143)

        return train(wanted, report, store)

    for steps in (3, 6, 1, 4):  # within an epoch, at its end, after one step
        with pytest.raises(SystemExit):
            run_for(steps)
    resumed = run_for(1000)
    assert first == [(0, 1), (1, 4), (2, 2), (2, 3), (3, 3)]
    assert resumed.epochs == unbroken.epochs
    for one, two in zip(weights(unbroken), weights(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_training_that_had_ended_is_not_done_again(train: Train, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "this training")
    trained = train(settings(), store=store)
    seen: list[pb.Progress] = []
    again = train(settings(), seen.append, store)
    assert not seen
    assert again.epochs == trained.epochs
    np.testing.assert_array_equal(weights(trained)[0], weights(again)[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": pb.OPTIMIZER_ADAMW, "weight_decay": 0.1},
        {"optimizer": pb.OPTIMIZER_SGD, "momentum": 0.5},
        {"schedule": pb.LEARNING_RATE_SCHEDULE_LINEAR},
        {"warmup_epochs": 1},
        {"l2": 0.1},
        {"max_gradient_norm": 1e-3, "optimizer": pb.OPTIMIZER_SGD, "momentum": 0.9},
        {"class_weights": pb.CLASS_WEIGHTS_BALANCED},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_setting_matters(train: Train, changed: dict[str, Any]) -> None:
    plain = settings(max_epochs=2)
    if changed.get("optimizer") == pb.OPTIMIZER_SGD and len(changed) > 2:
        plain = settings(max_epochs=2, optimizer=pb.OPTIMIZER_SGD, momentum=0.9)
    one = weights(train(plain))
    two = weights(train(settings(max_epochs=2, **changed)))
    assert not np.array_equal(one[0], two[0])


def test_l2_keeps_kernels_small(train: Train) -> None:
    sizes = [
        float(np.square(weights(train(settings(max_epochs=10, l2=l2)))[0]).sum())
        for l2 in (0.0, 0.1)
    ]
    assert sizes[1] < sizes[0] / 2

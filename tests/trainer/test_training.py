"""How a network is fitted, on data small enough to fit in a second."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.examples import Examples
from servery_trainer.hyperparameters import Training
from servery_trainer.networks import Dense
from servery_trainer.preprocessing import TablePreprocessing

pytestmark = pytest.mark.slow  # and the tests import TensorFlow, not the module: seconds saved


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
    codes = np.arange(rows) % 2
    points = rng.normal(codes[:, None] * 2.0, 1.0, (rows, 2)).astype(np.float32)
    return Examples(
        types={},
        inputs={"x": points[:, :1], "y": points[:, 1:]},
        codes_B=codes,
        labels=("near", "far"),
        row_numbers_B=np.arange(1, rows + 1),
        total=rows,
        dropped_missing=0,
        dropped_duplicates=0,
        kept_duplicates=0,
    )


def train(
    wanted: Training, report: Callable[[pb.Progress], Any] = str
) -> tuple[Any, list[pb.Epoch], Any]:
    """Fit a small network; return it, its epochs and the validation part."""
    import keras

    from servery_trainer import families, training

    keras.utils.set_random_seed(wanted.seed)
    data = examples()
    preprocessing = TablePreprocessing.fit(data.inputs, fill=None)
    network = families.build(Dense(hidden_units=(8,), dropout=0.2), (2,), 2)
    learned = training.Part(data, np.arange(60), preprocessing)
    held_out = training.Part(data, np.arange(60, 90), preprocessing)
    return network, training.fit(network, learned, held_out, wanted, report), held_out


def loss(network: Any, part: Any) -> float:
    ((features, codes),) = part.batches(1000)
    logits = network(features, training=False).numpy().astype(np.float64)
    picked = logits[np.arange(len(codes)), codes]
    return float((np.log(np.exp(logits).sum(axis=1)) - picked).mean())


def test_reports_each_step_and_each_epoch() -> None:
    seen: list[pb.Progress] = []
    _, epochs, _ = train(settings(), seen.append)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert [(p.epoch, p.step) for p in seen[:5]] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 1)]
    assert all(p.phase == pb.PHASE_TRAINING and p.steps_per_epoch == 4 for p in seen)
    assert seen[0].eta_s > 0
    assert seen[-1].eta_s == 0
    assert set(seen[-1].metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert seen[-1].metrics["val_loss"] == epochs[-1].validation_loss


def test_learns_and_measures_what_it_learned() -> None:
    network, epochs, held_out = train(settings(max_epochs=20, early_stopping_patience=20))
    best = min(epoch.validation_loss for epoch in epochs)
    assert best < epochs[0].validation_loss
    assert loss(network, held_out) == pytest.approx(best, rel=1e-5)


def test_stops_early_and_takes_the_best_weights_back() -> None:
    network, epochs, held_out = train(settings(max_epochs=200, learning_rate=0.3))
    losses = [epoch.validation_loss for epoch in epochs]
    assert len(losses) < 200
    assert losses.index(min(losses)) == len(losses) - 3
    assert loss(network, held_out) == pytest.approx(min(losses), rel=1e-5)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (train(settings(seed=seed))[0].get_weights() for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


def test_a_loss_that_becomes_infinite_names_the_learning_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import keras

    # no rate the contract allows does this to so small a network, so the weights start broken
    broken = keras.initializers.Constant(float("inf"))
    build = keras.layers.Dense.build

    def build_broken(layer: Any, shape: Any) -> None:
        layer.kernel_initializer = broken
        build(layer, shape)

    monkeypatch.setattr(keras.layers.Dense, "build", build_broken)
    with pytest.raises(FieldInvalidError) as refused:
        train(settings())
    assert refused.value.metadata["field"] == "training_job.spec.training.learning_rate"


def test_ends_at_the_step_whose_report_raises() -> None:
    seen: list[pb.Progress] = []

    def stop(progress: pb.Progress) -> None:
        seen.append(progress)
        if len(seen) == 2:
            raise SystemExit(143)

    with pytest.raises(SystemExit):
        train(settings(max_epochs=100), stop)
    assert len(seen) == 2

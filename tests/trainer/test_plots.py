"""Pictures are drawn whatever the classes are."""

import io

import numpy as np
import pytest
from matplotlib import image

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import plots
from servery_trainer.evaluation import evaluate

EPOCHS = [
    pb.Epoch(
        number=n,
        loss=1 / n,
        validation_loss=0.1 + 1 / n,
        metrics=dict.fromkeys(("accuracy", "val_accuracy", "mae", "val_mae"), n / 9),
    )
    for n in (1, 2, 3)
]


def pictures(classes: int, labels: tuple[str, ...] | None = None) -> dict[str, bytes]:
    rng = np.random.default_rng(classes)
    probabilities = rng.dirichlet(np.ones(classes), 200).astype(np.float32)
    codes = (rng.random(200)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    codes = np.minimum(codes, classes - 1).astype(np.int64)
    names = labels or tuple(f"class {code}" for code in range(classes))
    found = evaluate(probabilities, codes, names)
    return {
        "curves.png": plots.curves(EPOCHS, "accuracy"),
        **plots.classification(found, probabilities, codes),
    }


@pytest.mark.parametrize("classes", [2, 7, 60])
def test_there_are_four_of_them(classes: int) -> None:
    drawn = pictures(classes)
    assert set(drawn) == {"curves.png", "confusion.png", "roc.png", "calibration.png"}
    for content in drawn.values():
        pixels = image.imread(io.BytesIO(content))
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.01  # not blank


def test_labels_may_be_anything(recwarn: pytest.WarningsRecorder) -> None:
    assert pictures(3, ("$x_1", r"\frac{", "a very long label that goes on and on and on"))
    assert not recwarn.list


def test_the_same_training_gives_the_same_bytes() -> None:
    assert pictures(3) == pictures(3)


def test_one_epoch_is_enough() -> None:
    probabilities = np.array([[0.9, 0.1]], np.float32)
    codes = np.array([0])
    found = evaluate(probabilities, codes, ("x", "y"))
    assert plots.curves(EPOCHS[:1], "mae")
    assert len(plots.classification(found, probabilities, codes)) == 3

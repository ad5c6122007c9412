"""Metrics are those everybody means: scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics

from servery_trainer.evaluation import evaluate

LABELS = ("a", "b", "c", "never predicted")


def test_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 4, 500)
    probabilities = rng.dirichlet([2, 2, 2, 0.01], 500).astype(np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities[:, 3] *= 0.1
    evaluation = evaluate(probabilities, codes, LABELS)
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        codes, predicted, labels=range(4), zero_division=0
    )
    assert evaluation.accuracy == metrics.accuracy_score(codes, predicted)
    np.testing.assert_array_equal(
        evaluation.confusion, metrics.confusion_matrix(codes, predicted, labels=range(4))
    )
    for code, figures in enumerate(evaluation.classes):
        assert figures.label == LABELS[code]
        assert figures.precision == pytest.approx(precision[code])
        assert figures.recall == pytest.approx(recall[code])
        assert figures.f1 == pytest.approx(f1[code])
        assert figures.support == support[code]
    assert evaluation.summary["macro_f1"] == pytest.approx(f1.mean())
    assert evaluation.summary["macro_precision"] == pytest.approx(precision.mean())
    assert evaluation.summary["macro_recall"] == pytest.approx(recall.mean())


def test_log_loss_is_the_mean_negative_log_likelihood() -> None:
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    loss = evaluate(probabilities, np.array([0, 1]), ("x", "y")).log_loss
    assert loss == pytest.approx(metrics.log_loss([0, 1], probabilities))


def test_log_loss_of_a_certain_mistake_is_finite() -> None:
    evaluation = evaluate(np.array([[1, 0]], np.float32), np.array([1]), ("x", "y"))
    assert 10 < evaluation.log_loss < 20
    assert evaluation.summary["macro_precision"] == 0

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
    for name in ("precision", "recall", "f1"):
        figure = getattr(metrics, f"{name}_score")
        expected = figure(codes, predicted, average="weighted", zero_division=0)
        assert evaluation.summary[f"weighted_{name}"] == pytest.approx(expected)
    assert evaluation.summary["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(codes, predicted)
    )
    roc, pr = (
        [score(codes == code, probabilities[:, code]) for code in range(4)]
        for score in (metrics.roc_auc_score, metrics.average_precision_score)
    )
    assert [figures.roc_auc for figures in evaluation.classes] == pytest.approx(roc)
    assert [figures.pr_auc for figures in evaluation.classes] == pytest.approx(pr)
    assert evaluation.summary["roc_auc"] == pytest.approx(np.mean(roc))
    assert evaluation.summary["pr_auc"] == pytest.approx(np.mean(pr))
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


def test_a_class_without_rows_has_no_area() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], np.float32)
    evaluation = evaluate(probabilities, np.array([0, 1]), ("x", "y", "z"))
    assert [figures.roc_auc for figures in evaluation.classes] == [1, 1, None]
    assert evaluation.summary["roc_auc"] == 1
    assert evaluation.summary["balanced_accuracy"] == 1
    one = evaluate(probabilities[:1], np.array([0]), ("x", "y", "z"))
    assert "roc_auc" not in one.summary


def test_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(7)
    held, widths = 0, []
    for _ in range(100):
        codes = rng.integers(0, 2, 150)
        right = rng.random(150) < 0.8
        sure = np.where(right == (codes == 1), 0.8, 0.2).astype(np.float32)
        found = evaluate(np.stack([1 - sure, sure], axis=1), codes, ("x", "y"))
        lower, upper = found.intervals["accuracy"]
        assert lower <= found.accuracy <= upper
        held += lower <= 0.8 <= upper
        widths.append(upper - lower)
    assert 88 <= held <= 100  # 95 of 100
    assert np.mean(widths) == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 150) ** 0.5, rel=0.1)
    assert set(found.intervals) == {"accuracy", "macro_f1", "log_loss"}
    lower, upper = found.intervals["macro_f1"]
    assert lower <= found.summary["macro_f1"] <= upper

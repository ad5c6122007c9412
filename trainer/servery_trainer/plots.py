"""Pictures of a training and of what came out, as PNG files of the bundle.

Shape suffixes: B rows, K classes.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import scores
from servery_trainer.evaluation import ClassMetrics, Evaluation
from servery_trainer.preprocessing import FloatArray

_SIZE_INCHES: Final = 6.0
_DOTS_PER_INCH: Final = 110
_MOST_NAMED: Final = 20
"""Classes whose names and counts are written out; more than that only as colours."""
_MOST_CURVES: Final = 10
_MOST_POINTS: Final = 5000
_MOST_STEPS: Final = 200
_LONGEST_LABEL: Final = 20
_FIRST, _SECOND, _QUIET = "#1f5fa8", "#c8501e", "#999999"


def classification(
    evaluation: Evaluation, probabilities_BK: FloatArray, codes_B: NDArray[np.int64]
) -> dict[str, bytes]:
    """Draw what a classifier is like.

    Args:
        evaluation: Of the published graph on the test part.
        probabilities_BK: What the published graph says to the test part.
        codes_B: The true classes of the test part.

    Returns:
        PNG files by name: `confusion.png`, `roc.png` and `calibration.png`.
    """
    return {
        "confusion.png": _confusion(evaluation),
        "roc.png": roc(
            evaluation.classes,
            probabilities_BK,
            codes_B[:, None] == np.arange(len(evaluation.classes)),
        ),
        "calibration.png": _calibration(evaluation, probabilities_BK, codes_B),
    }


def curves(epochs: Sequence[pb.Epoch], figure_name: str) -> bytes:
    """Draw the loss and the figure of each epoch, of at least one."""
    figure = Figure((_SIZE_INCHES * 1.6, _SIZE_INCHES * 0.7), layout="constrained")
    numbers = [epoch.number for epoch in epochs]
    best = min(epochs, key=lambda epoch: epoch.validation_loss).number
    loss = [epoch.loss for epoch in epochs], [epoch.validation_loss for epoch in epochs]
    other = (
        [epoch.metrics[figure_name] for epoch in epochs],
        [epoch.metrics[f"val_{figure_name}"] for epoch in epochs],
    )
    left, right = figure.subplots(1, 2)
    for axes, name, (training, validation) in (
        (left, "loss", loss),
        (right, figure_name.replace("_", " "), other),
    ):
        marker = "o" if len(epochs) < 3 else None
        for values, label, colour in (
            (training, "training", _FIRST),
            (validation, "validation", _SECOND),
        ):
            axes.plot(numbers, values, label=label, color=colour, marker=marker)
        axes.axvline(best, color=_QUIET, linestyle=":", label=f"best epoch ({best})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name(axes, f"{name.capitalize()} by epoch", "epoch", name)
        axes.legend()
    return _png(figure)


def _confusion(evaluation: Evaluation) -> bytes:
    counts = evaluation.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    classes = len(counts)
    side = _SIZE_INCHES if classes <= 8 else _SIZE_INCHES * 1.4
    figure = Figure((side * 1.1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if classes <= _MOST_NAMED:
        labels = [_short(figures.label) for figures in evaluation.classes]
        turned = 45 if max(map(len, labels)) > 4 else 0
        axes.set_xticks(range(classes), labels, rotation=turned, ha="right" if turned else "center")
        axes.set_yticks(range(classes), labels)
        for row, column in np.argwhere(counts):
            dark = shares[row, column] > 0.5
            axes.text(
                *(column, row, str(counts[row, column])),
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    title = f"{counts.sum()} test rows, accuracy {evaluation.accuracy:.4f}"
    _name(axes, title, "predicted class", "true class")
    return _png(figure)


def roc(
    classes: Sequence[ClassMetrics],
    probabilities_BK: FloatArray,
    truth_BK: NDArray[np.bool_],
    *,
    exclusive: bool = True,
) -> bytes:
    """Draw the ROC curves of classes, or of labels.

    Args:
        classes: Their figures.
        probabilities_BK: What the graph says.
        truth_BK: Which are true.
        exclusive: Just one is: of two, one curve says all.
    """
    figure = Figure((_SIZE_INCHES * 1.1, _SIZE_INCHES), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_QUIET, linestyle=":", label="by chance")
    known = [code for code, c in enumerate(classes) if c.roc_auc is not None]
    one_says_all = exclusive and len(classes) == 2
    shown = known[-1:] if one_says_all else known
    # of many classes those that are the hardest to tell
    shown = sorted(shown, key=lambda code: classes[code].roc_auc or 0)[:_MOST_CURVES]
    for code in sorted(shown):
        figures = classes[code]
        rates = scores.roc_curve(probabilities_BK[:, code], truth_BK[:, code])
        axes.plot(*rates, label=f"{_short(figures.label)} ({figures.roc_auc:.4f})")
    left_out = 0 if one_says_all else len(known) - len(shown)
    title = f"ROC, one {'class' if exclusive else 'label'} against the rest (area)"
    title += f"; the {len(shown)} hardest of {len(known)}" if left_out else ""
    _name(axes, title, "false positive rate", "true positive rate")
    axes.legend(loc="lower right", fontsize="small")
    return _png(figure)


def _calibration(
    evaluation: Evaluation, probabilities_BK: FloatArray, codes_B: NDArray[np.int64]
) -> bytes:
    counts, sure, right = scores.reliability(probabilities_BK, codes_B)
    figure = Figure((_SIZE_INCHES, _SIZE_INCHES * 1.15), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color=_QUIET, linestyle=":", label="honest")
    above.plot(sure, right, color=_FIRST, marker="o", label="the published graph")
    above.set_xlim(0, 1)
    above.set_ylim(0, 1.02)
    error = evaluation.calibration_error
    _name(above, f"Calibration, expected error {error:.4f}", "", "share of rows that are right")
    above.legend(loc="upper left")
    width = 1 / scores.CALIBRATION_BINS
    below.bar(sure, counts, width=0.8 * width, color=_FIRST)
    below.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _name(below, "", "probability of the predicted class", "rows")
    return _png(figure)


def residuals(predicted_B: FloatArray, truth_B: FloatArray, metrics: Mapping[str, float]) -> bytes:
    """Draw predictions over the truth, and how far they are off.

    Args:
        predicted_B: By the published graph.
        truth_B: The same rows.
        metrics: With `mae` and, if there is one, `r2`.
    """
    figure = Figure((_SIZE_INCHES * 1.6, _SIZE_INCHES * 0.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = [min(predicted_B.min(), truth_B.min()), max(predicted_B.max(), truth_B.max())]
    left.plot(ends, ends, color=_QUIET, linestyle=":", label="right")
    every = -(-len(truth_B) // _MOST_POINTS)
    left.scatter(truth_B[::every], predicted_B[::every], s=10, alpha=0.5, color=_FIRST)
    title = f"R² {metrics['r2']:.4f}" if "r2" in metrics else "All rows hold the same number"
    _name(left, f"{len(truth_B)} test rows, {title}", "true", "predicted")
    left.legend(loc="upper left")
    right.hist(predicted_B - truth_B, bins=30, color=_FIRST)
    right.axvline(0, color=_QUIET, linestyle=":")
    _name(right, f"Mean absolute error {metrics['mae']:.4g}", "predicted minus true", "rows")
    return _png(figure)


def anomaly_scores(scores_B: FloatArray, truth_B: NDArray[np.bool_], threshold: float) -> bytes:
    """Draw how the scores of normal rows and of anomalies lie about the threshold.

    Args:
        scores_B: By the published graph, finite.
        truth_B: Which are those of anomalies.
        threshold: Larger ones are called anomalies.
    """
    figure = Figure((_SIZE_INCHES * 1.3, _SIZE_INCHES * 0.8), layout="constrained")
    axes = figure.subplots()
    least = max(float(scores_B.min()), threshold * 1e-6, float(np.finfo(np.float32).tiny))
    ends = least, max(float(scores_B.max()), threshold, least) * 1.01
    bins = np.geomspace(*ends, 41).tolist()
    for kind_B, label, colour in (
        (~truth_B, "normal", _FIRST),
        (truth_B, "anomalies", _SECOND),
    ):
        if kind_B.any():
            shares = np.full(kind_B.sum(), 1 / kind_B.sum())
            shown = np.maximum(scores_B[kind_B], least)
            name = f"{label} ({kind_B.sum()})"
            axes.hist(shown, bins, weights=shares, label=name, color=colour, alpha=0.6)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold ({threshold:.4g})")
    axes.set_xscale("log")
    _name(axes, f"Scores of {len(scores_B)} test rows", "score", "share of rows of this kind")
    axes.legend()
    return _png(figure)


def forecast(
    forecasts: FloatArray, truth: FloatArray, by_step: NDArray[np.float64], naive: float
) -> bytes:
    """Draw forecasts beside the truth, and how far off they are by how far they look.

    Args:
        forecasts: By the published graph, windows in the order of their times.
        truth: The same steps.
        by_step: Mean absolute error of each step ahead.
        naive: That of the naive forecast one step ahead, on the training part.
    """
    figure = Figure((_SIZE_INCHES * 1.6, _SIZE_INCHES * 0.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = slice(-_MOST_STEPS, None)
    steps = np.arange(len(truth))[shown]
    left.plot(steps, truth[shown, 0], color=_FIRST, label="true")
    left.plot(steps, forecasts[shown, 0], color=_SECOND, label="forecast")
    _name(left, f"One step ahead, the last {len(steps)} test windows", "window", "value")
    left.legend(loc="upper left")
    ahead = np.arange(1, len(by_step) + 1)
    right.plot(ahead, by_step, color=_FIRST, marker="o", label="the published graph")
    right.axhline(naive, color=_QUIET, linestyle=":", label="naive forecast, one step, training")
    right.set_ylim(bottom=0)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    _name(right, "Mean absolute error", "steps ahead", "error")
    right.legend(loc="lower right")
    return _png(figure)


def recall(hits_BK: NDArray[np.bool_], popular_BK: NDArray[np.bool_]) -> bytes:
    """Draw how often the item that was taken is among the first of an answer.

    Args:
        hits_BK: Where in the answers of the published graph it is.
        popular_BK: The same of recommending what is taken most often.
    """
    figure = Figure((_SIZE_INCHES * 1.1, _SIZE_INCHES * 0.8), layout="constrained")
    axes = figure.subplots()
    ranks = np.arange(1, hits_BK.shape[1] + 1)
    for hits, label, colour in (
        (hits_BK, "the published graph", _FIRST),
        (popular_BK, "what is taken most often", _QUIET),
    ):
        shares = hits.mean(axis=0).cumsum()
        axes.plot(ranks, shares, label=f"{label} ({shares[-1]:.4f})", color=colour, marker="o")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _name(axes, f"Recall of {len(hits_BK)} test users", "items recommended", "share of users")
    axes.legend()
    return _png(figure)


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _short(label: str) -> str:
    """Return a label that fits, with `$` as it is and not the start of a formula."""
    short = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
    return short.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    file: Any = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    content: bytes = file.getvalue()
    return content

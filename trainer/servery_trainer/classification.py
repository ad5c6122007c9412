"""The head of classifiers: a probability for each class, and the name of the most probable one.

Shape suffixes: B rows, K classes.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import evaluation, heads, plots
from servery_trainer.heads import Arrays, GraphTail, Output

LABEL: Final = "label"
PROBABILITIES: Final = "probabilities"


@dataclass(frozen=True, slots=True)
class Classification:
    """See `heads.Head`; the answers are probabilities [B, K].

    Args:
        labels: The text of each class.
    """

    labels: tuple[str, ...]

    score = "accuracy"

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `Head`."""
        return (
            Output(name=LABEL, dtype=np.dtype(object), shape=(1,), meaning="most probable class"),
            Output(
                name=PROBABILITIES,
                dtype=np.dtype(np.float32),
                shape=(len(self.labels),),
                meaning="probability of each class",
                labels=self.labels,
            ),
        )

    def decode(self, answers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """See `Head`."""
        texts_B = np.array(self.labels, np.str_)[answers.argmax(axis=1)]
        return {LABEL: texts_B[:, None], PROBABILITIES: answers}

    def to_onnx(self, answers: str, prefix: str) -> GraphTail:
        """See `Head`."""
        texts = numpy_helper.from_array(np.array(self.labels, np.object_), f"{prefix}labels")
        index = f"{prefix}index"
        return GraphTail(
            nodes=[
                helper.make_node("Identity", [answers], [PROBABILITIES]),
                helper.make_node("ArgMax", [PROBABILITIES], [index], axis=1, keepdims=1),
                helper.make_node("Gather", [texts.name, index], [LABEL], axis=0),
            ],
            initializers=[texts],
        )

    def clearness_B(self, answers: NDArray[np.float32]) -> NDArray[np.floating]:
        """See `Head`: by how much the most probable class leads."""
        ranked_BK = np.sort(answers, axis=1)
        lead_B: NDArray[np.floating] = ranked_BK[:, -1] - ranked_BK[:, -2]
        return lead_B

    def row_scores(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
        """See `Head`: 1 for the true class, else 0."""
        right_B: NDArray[np.bool_] = outputs[PROBABILITIES].argmax(axis=1) == values
        return right_B.astype(np.float64)

    def metrics(self, outputs: Arrays, values: NDArray[Any]) -> dict[str, float]:
        """See `Head`."""
        return evaluation.summary(outputs[PROBABILITIES], values, self.labels)

    def evaluate(self, outputs: Arrays, values: NDArray[Any]) -> heads.Findings:
        """See `Head`."""
        probabilities_BK = outputs[PROBABILITIES]
        found = evaluation.evaluate(probabilities_BK, values, self.labels)
        return heads.Findings(
            result=pb.TrainingResult(
                metrics=found.summary,
                intervals=heads.intervals(found.intervals),
                labels=self.labels,
                label_metrics=[figures.to_proto() for figures in found.classes],
                confusion_matrix=found.confusion.ravel().tolist(),
            ),
            details={
                "classes": [asdict(figures) for figures in found.classes],
                "confusion_matrix": found.confusion.tolist(),
            },
            pictures=plots.classification(found, probabilities_BK, values),
        )

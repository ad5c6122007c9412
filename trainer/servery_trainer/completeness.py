"""The gate of explanations: attributions must add up to what they explain (completeness).

A graph that does not pass is left out; the model is as good without it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.attribution import Explanation, explain
from servery_trainer.attribution_outputs import GAP
from servery_trainer.gradients.emitter import UnsupportedError
from servery_trainer.heads import Arrays, Head, Output
from servery_trainer.hyperparameters import Explaining
from servery_trainer.parity import Graph
from servery_trainer.preprocessing import Preprocessing

ROWS: Final = 64
"""Rows that are looked at, at most."""

TOLERANCE: Final = 0.05
"""Largest gap that passes."""

_STEPS: Final = (64, 128, 256)
"""Tried in this order if the caller does not say how many."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A graph that explains, or why there is none."""

    findings: pb.Explained | None = None
    """None: nobody asked for one."""
    explanation: Explanation | None = None
    graph: Graph | None = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Of the graph; none if there is none."""
        return tuple(self.explanation.outputs) if self.explanation else ()

    def run(self, inputs: Arrays) -> Mapping[str, NDArray[Any]]:
        """Return all outputs for these rows; nothing if there is no graph."""
        return self.graph.predict(inputs) if self.graph else {}

    def files(self) -> dict[str, bytes]:
        """Return the files of the bundle that hold it."""
        if self.explanation is None:
            return {}
        return {"explain.onnx": self.explanation.model.SerializeToString(deterministic=True)}


def explained(
    model: onnx.ModelProto,
    preprocessing: Preprocessing,
    head: Head,
    inputs: Arrays,
    wanted: Explaining,
    threads: int,
) -> Explained:
    """Build the graph that explains a model, and check that its attributions add up.

    Args:
        model: What `export.to_onnx` returned.
        preprocessing: What it was written from.
        head: What decodes its answers.
        inputs: Of rows not trained on, at least one; the first `ROWS` are used.
        wanted: What the caller asked for.
        threads: Threads of one run, at least 1.
    """
    if not wanted.gradients:
        return Explained()
    rows = {name: values[:ROWS] for name, values in inputs.items()}
    found = Explained()
    for steps in (wanted.steps,) if wanted.steps else _STEPS:
        try:
            explanation = explain(model, preprocessing, head, steps)
            graph = Graph(explanation.model, threads)
            gaps = graph.predict(rows)[GAP]
        except UnsupportedError as error:
            return Explained(findings=pb.Explained(refusal=str(error)))
        except Exception:
            log.exception("the graph that explains cannot be built")  # an offer, not a promise
            return Explained(findings=pb.Explained(refusal="it cannot be built; see the log"))
        found = _judged(explanation, graph, gaps, steps)
        if found.graph:
            break
    return found


def _judged(
    explanation: Explanation, graph: Graph, gaps: NDArray[np.float32], steps: int
) -> Explained:
    """Keep a graph if all gaps are small, and say why if not."""
    largest, median = float(gaps.max()), float(np.median(gaps))
    findings = pb.Explained(
        outputs=[output.name for output in explanation.outputs],
        steps=steps,
        row_count=len(gaps),
        median_gap=median,
        largest_gap=largest,
        tolerance=TOLERANCE,
        size_bytes=explanation.model.ByteSize(),
    )
    if largest <= TOLERANCE:  # NaN is not
        return Explained(findings=findings, explanation=explanation, graph=graph)
    findings.refusal = (
        f"attributions miss what they explain by up to {largest:.3g} of their absolute sum,"
        f" {TOLERANCE:g} is allowed; ask for more steps"
    )
    return Explained(findings=findings)

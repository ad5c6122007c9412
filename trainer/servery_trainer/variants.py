"""Which of several graphs to publish: built, measured side by side, chosen by a budget.

Shape suffixes: B rows.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import profiling, quantization
from servery_trainer.heads import Arrays, Head
from servery_trainer.hyperparameters import Optimization
from servery_trainer.parity import CPU, CUDA, Graph, compare
from servery_trainer.profiling import Latency
from servery_trainer.scores import Interval, bootstrap
from servery_trainer.spec import ROOT

FLOAT32: Final = "float32"
INT8_TOLERANCE: Final = 0.1
"""Largest relative error on golden rows, which are clear cases."""
FLOAT16_TOLERANCE: Final = 0.02
"""The same; 16-bit floats have 11 bits."""
NOISE: Final = 0.08
"""Graphs whose times differ by a smaller share are as fast as each other."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A graph and what was measured of it."""

    name: str
    model: onnx.ModelProto
    graph: Graph
    size_bytes: int
    tolerance: float
    """Largest relative error on the golden rows that passes."""
    error: float
    """Relative error on the golden rows; infinite if a label is another one."""
    score: float
    """`Head.score` on the test part."""
    score_drop: float
    """What `float32` has more of it."""
    score_drop_interval: Interval
    latencies: tuple[Latency, ...]
    """Measured in turn with those of the other variants."""
    refusal: str = ""
    """Why it must not be chosen; empty: it may."""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A graph that there is no measure of."""

    name: str
    refusal: str
    """Why."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What variants are judged by."""

    head: Head
    golden: Arrays
    """Inputs of the golden rows."""
    expected: Arrays
    """The outputs that follow from what the trained network says to them."""
    test: Arrays
    """Inputs of the test part."""
    values: NDArray[Any]
    """`Target.values` of the test part."""
    tolerance: float
    """Largest relative error of a graph of 32-bit floats."""


def optimize(
    model: onnx.ModelProto,
    calibration: Arrays,
    proof: Proof,
    wanted: Optimization,
    threads: int,
) -> tuple[tuple[Variant, ...], tuple[Unmeasured, ...]]:
    """Build and measure variants of a graph, and choose one.

    Args:
        model: The graph as converted; the only variant unless the budget asks for speed or size.
        calibration: Inputs of the training part.
        proof: What to judge by.
        wanted: The budget.
        threads: Threads of one run, at least 1.

    Returns:
        All variants, `float32` first, one of which is chosen; and what else there could be.

    Raises:
        FieldInvalidError: None is as fast as was asked for.
    """
    makers: dict[str, tuple[Callable[[], onnx.ModelProto], float, str]] = {
        FLOAT32: (lambda: model, proof.tolerance, CPU)
    }
    if wanted.objective != pb.OBJECTIVE_ACCURACY or wanted.max_latency_us:
        makers |= {
            "optimized": (lambda: quantization.optimized(model), proof.tolerance, CPU),
            "int8_dynamic": (lambda: quantization.int8_dynamic(model), INT8_TOLERANCE, CPU),
            "int8_static": (
                lambda: quantization.int8_static(model, calibration),
                INT8_TOLERANCE,
                CPU,
            ),
            "float16": (lambda: quantization.float16(model), FLOAT16_TOLERANCE, CUDA),
        }
    built, unmeasured = {}, []
    for name, (make, tolerance, provider) in makers.items():
        if provider not in ort.get_available_providers():
            unmeasured.append(Unmeasured(name, f"ONNX Runtime has no {provider} here"))
            continue
        try:
            variant = make()
            graph = Graph(variant, threads, provider)
        except Exception:
            if name == FLOAT32:
                raise
            log.exception("the variant %s cannot be built", name)  # it is an offer, not a promise
            unmeasured.append(Unmeasured(name, "it cannot be built of this graph"))
            continue
        if graph.provider != provider:
            unmeasured.append(Unmeasured(name, f"the {provider} finds no device here"))
        else:
            built[name] = (variant, graph, tolerance)
    return choose(_measure(built, proof), wanted), tuple(unmeasured)


def _measure(
    built: Mapping[str, tuple[onnx.ModelProto, Graph, float]], proof: Proof
) -> tuple[Variant, ...]:
    graphs = [graph for _, graph, _ in built.values()]
    times = profiling.measure(graphs, proof.test)
    scores = {
        name: proof.head.row_scores(graph.predict(proof.test), proof.values)
        for name, (_, graph, _) in built.items()
    }
    variants = []
    for (name, (model, graph, tolerance)), latencies in zip(built.items(), times, strict=True):
        lost_B = scores[FLOAT32] - scores[name]
        intervals = bootstrap({"lost": lost_B}, {"drop": lambda draws: draws["lost"].mean(axis=1)})
        error, agreement = compare(graph.predict(proof.golden), proof.expected)
        variants.append(
            Variant(
                name=name,
                model=model,
                graph=graph,
                size_bytes=model.ByteSize(),
                tolerance=tolerance,
                error=error if agreement == 1 else np.inf,
                score=float(scores[name].mean()),
                score_drop=float(lost_B.mean()),
                score_drop_interval=intervals["drop"],
                latencies=latencies,
            )
        )
    return tuple(variants)


def choose(variants: Sequence[Variant], wanted: Optimization) -> tuple[Variant, ...]:
    """Mark one variant as chosen and say of the others why not, where the budget forbids them.

    Args:
        variants: `float32` first.
        wanted: The budget.

    Raises:
        FieldInvalidError: None is as fast as was asked for.
    """
    base = variants[0]
    judged = [replace(variant, refusal=_refusal(variant, base, wanted)) for variant in variants]
    allowed = [variant for variant in judged if not variant.refusal]
    if not allowed:
        fastest = min(_first_us(v) for v in judged if _kept(v, wanted))
        raise FieldInvalidError(
            f"{ROOT}.optimization.max_latency_us",
            wanted.max_latency_us,
            f"be at least {fastest:.0f} on this machine, or the network be smaller",
        )
    first = allowed[0]
    match wanted.objective:
        case pb.OBJECTIVE_LATENCY:
            best = min(allowed, key=lambda variant: relative_time(variant, base))
            if relative_time(best, base) > (1 - NOISE) * relative_time(first, base):
                best = first
        case pb.OBJECTIVE_SIZE:
            best = min(allowed, key=lambda variant: variant.size_bytes)
        case _:
            best = min(allowed, key=lambda variant: (variant.name != FLOAT32, _first_us(variant)))
    return tuple(replace(variant, chosen=variant is best) for variant in judged)


def relative_time(variant: Variant, base: Variant) -> float:
    """Return the least time of a run in those of `base`, the geometric mean over batch sizes."""
    ratios = [
        one.min_us / other.min_us
        for one, other in zip(variant.latencies, base.latencies, strict=True)
    ]
    return float(np.exp(np.mean(np.log(ratios))))


def _kept(variant: Variant, wanted: Optimization) -> bool:
    """Tell whether the answers of the variant are good enough."""
    close = variant.error <= variant.tolerance
    return close and variant.score_drop_interval[1] <= wanted.max_accuracy_drop


def _refusal(variant: Variant, base: Variant, wanted: Optimization) -> str:
    if variant.error > variant.tolerance:
        return f"golden rows are off by {variant.error:.3g}, {variant.tolerance:g} is allowed"
    if not _kept(variant, wanted):
        drop = variant.score_drop_interval[1]
        return f"it may lose {drop:.4f} of the score, {wanted.max_accuracy_drop:g} is allowed"
    if wanted.max_latency_us and _first_us(variant) > wanted.max_latency_us:
        return f"one row takes {_first_us(variant):.0f} µs, {wanted.max_latency_us:g} is allowed"
    if variant.name.startswith("int8") and (slower := relative_time(variant, base)) > 1:
        return f"it takes {slower:.2f} times as long as {base.name}"
    return ""


def _first_us(variant: Variant) -> float:
    return variant.latencies[0].median_us

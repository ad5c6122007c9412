"""The files of a version, as docs/reference/bundle.md describes them.

Shape suffixes: B rows.
"""

import io
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf import json_format
from google.protobuf.message import Message
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.examples import Examples
from servery_trainer.explanation import Importance
from servery_trainer.heads import Arrays, Findings, Output, datatype
from servery_trainer.parity import Parity
from servery_trainer.profiling import Latency
from servery_trainer.variants import Unmeasured, Variant

GOLDEN_ROWS: Final = 16
"""At least so many golden rows, if so many were held out; more to show each class."""

_MOST_GOLDEN_ROWS: Final = 256
_MEANINGS: Final = {4: "pixels: height, width, channel", 3: "numbers: step, channel"}
_LIBRARIES: Final = ("onnx", "onnxruntime", "numpy")
_QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_MOST_FREQUENT: Final = 20
_MOST_SHOWN: Final = 100
_STATISTICS_VALUES: Final = 10_000_000
"""Quantiles of larger parts are those of evenly spaced rows."""


def signature(
    task: str, inputs: Arrays, outputs: Sequence[Output], explanation: Sequence[Output] = ()
) -> Any:
    """Describe the inputs and outputs of the graph, and the outputs of the one that explains it."""
    described: dict[str, Any] = {
        "task": task,
        "inputs": [
            {
                "name": name,
                "datatype": datatype(values.dtype),
                "shape": [-1, *values.shape[1:]],
                "meaning": _MEANINGS.get(values.ndim, f"column `{name}`"),
            }
            for name, values in inputs.items()
        ],
        "outputs": _described(outputs),
    }
    if explanation:
        described["explanation"] = {"outputs": _described(explanation)}
    return described


def _described(outputs: Sequence[Output]) -> Any:
    return [
        {
            "name": output.name,
            "datatype": datatype(output.dtype),
            "shape": [-1, *output.shape],
            "meaning": output.meaning,
        }
        | ({"labels": list(output.labels)} if output.labels else {})
        for output in outputs
    ]


def as_json(message: Message) -> Any:
    """Return a message for a document; its maps, which have no order, in that of their keys."""
    return json.loads(json_format.MessageToJson(message, sort_keys=True))


def pick_golden(
    clearness_B: NDArray[np.floating], strata_B: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Choose rows that show everything there is and whose labels no rounding can turn.

    Args:
        clearness_B: `Head.clearness_B` of the rows to choose from.
        strata_B: `Target.strata_B` of the same.

    Returns:
        Indices, ascending.
    """
    rank_B = np.empty(len(strata_B), np.int64)  # 0 for the clearest row of each stratum
    seen: dict[int, int] = {}
    for row in np.argsort(-clearness_B, kind="stable"):
        stratum = int(strata_B[row])
        rank_B[row] = seen.get(stratum, 0)
        seen[stratum] = int(rank_B[row]) + 1
    wanted = min(max(GOLDEN_ROWS, len(seen)), _MOST_GOLDEN_ROWS, len(strata_B))
    return np.sort(np.argsort(rank_B, kind="stable")[:wanted])


def golden(
    inputs: Arrays, outputs: Arrays, tolerance: float, explanation: Arrays | None = None
) -> bytes:
    """Pack rows with the outputs that follow from what the trained network says to them.

    And with the explanations of these, if there are any.
    """
    arrays: dict[str, NDArray[Any]] = {
        f"input:{name}": rows.astype(np.str_) if rows.dtype == np.object_ else rows
        for name, rows in inputs.items()
    }
    arrays |= {f"output:{name}": values for name, values in outputs.items()}
    arrays |= {f"explain:{name}": values for name, values in (explanation or {}).items()}
    arrays["tolerance"] = np.array(tolerance, np.float64)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def metrics(
    findings: Findings,
    test_rows: int,
    slices: Sequence[pb.Slice],
    parity: Parity,
    importances: Sequence[Importance],
    explained: pb.Explained | None,
) -> Any:
    """Render the evaluation of the graph."""
    result = findings.result
    return {
        **dict(sorted(result.metrics.items())),
        "intervals": {
            name: [ends.lower, ends.upper] for name, ends in sorted(result.intervals.items())
        },
        "test_rows": test_rows,
        **findings.details,
        "slices": [
            {
                "column": part.column,
                "value": part.value,
                "row_count": part.row_count,
                **dict(sorted(part.metrics.items())),
            }
            for part in slices
        ],
        "importances": [
            {
                "input": importance.input,
                "accuracy_drop": importance.score_drop,
                "deviation": importance.deviation,
            }
            for importance in importances
        ],
        "parity": {
            "row_count": parity.row_count,
            "max_relative_error": parity.max_relative_error,
            "label_agreement": parity.label_agreement,
            "tolerance": parity.tolerance,
        },
    } | ({"explanation": _completeness(explained)} if explained else {})


def _completeness(findings: pb.Explained) -> Any:
    if findings.refusal:
        return {"refusal": findings.refusal}
    return {
        "steps": findings.steps,
        "row_count": findings.row_count,
        "median_gap": findings.median_gap,
        "largest_gap": findings.largest_gap,
        "tolerance": findings.tolerance,
        "size_bytes": findings.size_bytes,
    }


def profile(variants: Sequence[Variant], unmeasured: Sequence[Unmeasured], threads: int) -> Any:
    """Render the measured graphs and where they were measured, and those that were not."""
    (chosen,) = (variant for variant in variants if variant.chosen)
    return {
        "runtime": f"onnxruntime {version('onnxruntime')}",
        "execution_provider": chosen.graph.provider,
        "threads": threads,
        "machine": {"system": platform.system(), "architecture": platform.machine()},
        "variant": chosen.name,
        "latencies": _latencies(chosen.latencies),
        "variants": [
            {
                "name": variant.name,
                "chosen": variant.chosen,
                "refusal": variant.refusal,
                "execution_provider": variant.graph.provider,
                "size_bytes": variant.size_bytes,
                "golden_error": variant.error if np.isfinite(variant.error) else None,
                "golden_tolerance": variant.tolerance,
                "accuracy": variant.score,
                "accuracy_drop": variant.score_drop,
                "accuracy_drop_interval": list(variant.score_drop_interval),
                "latencies": _latencies(variant.latencies),
            }
            for variant in variants
        ],
        "unmeasured": [
            {"name": variant.name, "refusal": variant.refusal} for variant in unmeasured
        ],
    }


def _latencies(latencies: Sequence[Latency]) -> Any:
    return [
        {
            "batch_size": latency.batch_size,
            "runs": latency.runs,
            "min_us": latency.min_us,
            "median_us": latency.median_us,
            "p95_us": latency.p95_us,
        }
        for latency in latencies
    ]


def statistics(examples: Examples, train: NDArray[np.int64]) -> Any:
    """Describe the training part, to tell later whether live data drifts from it."""
    return {
        "row_count": len(train),
        "inputs": {name: _describe(values[train]) for name, values in examples.inputs.items()},
        **examples.target.describe(train),
    }


def _describe(values: NDArray[Any]) -> Any:
    if values.dtype == np.object_:
        return _describe_texts(values)
    every = -(-values.size // _STATISTICS_VALUES)
    flat = values[::every].astype(np.float64).ravel()
    present = flat[~np.isnan(flat)]
    return {
        "count": values.size,
        "missing_count": int(np.isnan(values).sum()),
        "mean": float(present.mean()),
        "standard_deviation": float(present.std()),
        "minimum": float(np.nanmin(values)),
        "maximum": float(np.nanmax(values)),
        "quantiles": {
            f"{share:g}": float(value)
            for share, value in zip(_QUANTILES, np.quantile(present, _QUANTILES), strict=True)
        },
    }


def _describe_texts(values: NDArray[np.object_]) -> Any:
    counts = Counter(values.ravel().tolist())
    missing = counts.pop("", 0)
    return {
        "count": values.size,
        "missing_count": missing,
        "distinct_count": len(counts),
        "most_frequent": [
            {"value": value[:_MOST_SHOWN], "count": count}
            for value, count in counts.most_common(_MOST_FREQUENT)
        ],
    }


def libraries(framework: Mapping[str, str]) -> dict[str, str]:
    """Return the version of all that decides what a job makes, given those of the framework."""
    known = {"python": platform.python_version(), **framework}
    return known | {name: version(name) for name in _LIBRARIES}


def write(
    directory: Path,
    model: onnx.ModelProto,
    golden_rows: bytes,
    documents: Mapping[str, Any],
    others: Mapping[str, bytes],
) -> None:
    """Write a bundle: all of it or nothing.

    Args:
        directory: Created if missing.
        model: Becomes `model.onnx`.
        golden_rows: Becomes `golden.npz`.
        documents: The JSON files, by name.
        others: All other files, by name.
    """
    files = {"model.onnx": model.SerializeToString(deterministic=True), "golden.npz": golden_rows}
    for name, document in documents.items():
        files[name] = json.dumps(document, indent=1, allow_nan=False).encode()
    files |= others
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, content in files.items():
            written.append(directory / name)
            written[-1].write_bytes(content)
    except BaseException:  # also a cancellation
        for path in written:
            path.unlink(missing_ok=True)
        raise

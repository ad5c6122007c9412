"""What each family of networks reaches on real data, beside a reference on the same rows.

    python bench/trainer_families.py [--only NAME ...] [--data DIRECTORY]

Runs one job after the other, each with default settings in a process of its own, as the trainer
does, and prints a line for each: the metric of the published graph on the test part, the reference,
how close the graph is to the trained network, how long conversion and the whole job took, and which
graph was chosen for the least latency, and how large and fast it is beside `float32`.

`--data` names a directory with `mnist/` (its four IDX files, gzipped) and `sms-spam/`
(`SMSSpamCollection.tsv`); without it the jobs that need them are left out. References are trained
here on the rows of the job's training part, by scikit-learn or least squares, unless the line names
a source.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.examples import Examples, load_examples
from servery_trainer.spec import parse_spec

SUNSPOTS: Final = Path(__file__).parents[1] / "tests" / "trainer" / "data" / "sunspots.csv"
NAMES: Final = {
    "dataset": f"tenants/default/datasets/{'0' * 64}",
    "publication": pb.Publication(model="tenants/default/models/bench"),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One job and what to compare it with."""

    spec: pb.TrainingSpec
    data: Path
    metric: str
    reference: Callable[[Examples], float] | float
    source: str


def main() -> int:
    """Run the jobs that can be run, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="names of jobs")
    parser.add_argument("--data", type=Path, help="directory with mnist/ and sms-spam/")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for name, make in JOBS.items():
            if arguments.only and name not in arguments.only:
                continue
            try:
                trial = make(Path(directory), arguments.data)
            except FileNotFoundError as error:
                print(f"{name}: left out, {error}")
                continue
            line = _measure(trial, Path(directory) / f"out-{name}")
            failed += "error" in line
            print(json.dumps({"job": name} | line), flush=True)
    return min(failed, 1)


def _measure(trial: Trial, out: Path) -> dict[str, Any]:
    trial.spec.optimization.objective = pb.OBJECTIVE_LATENCY
    text = out.with_suffix(".json")
    text.write_text(json_format.MessageToJson(trial.spec))
    command = [sys.executable, "-m", "servery_trainer.job", "--threads", "2"]
    command += ["--spec", str(text), "--dataset", str(trial.data), "--out", str(out)]
    began, phases, last = time.monotonic(), {}, {}
    with subprocess.Popen(  # noqa: S603 our own process
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout or ():
            last = json.loads(line)
            phases.setdefault(last.get("progress", {}).get("phase", "END"), time.monotonic())
    if "result" not in last:
        return last
    result = json_format.ParseDict(last["result"], pb.TrainingResult())
    reference = trial.reference
    if not isinstance(reference, float):
        reference = reference(load_examples(parse_spec(trial.spec), trial.data))
    interval = dict(result.intervals).get(trial.metric)
    (chosen,) = (variant for variant in result.variants if variant.chosen)
    base = result.variants[0]
    return {
        "metric": trial.metric,
        "value": round(result.metrics[trial.metric], 4),
        "interval": interval and [round(interval.lower, 4), round(interval.upper, 4)],
        "reference": round(reference, 4),
        "source": trial.source,
        "rows": [result.rows.train, result.rows.validation, result.rows.test],
        "epochs": result.epochs[-1].number,
        "parity": float(f"{result.parity.max_relative_error:.1e}"),
        "agreement": result.parity.label_agreement,
        "conversion_s": round(phases["PHASE_EVALUATING"] - phases["PHASE_CONVERTING"], 1),
        "job_s": round(phases["END"] - began),
        "chosen": chosen.name,
        "times_float32": round(chosen.latencies[0].median_us / base.latencies[0].median_us, 2),
        "size_of_float32": round(chosen.size_bytes / base.size_bytes, 2),
    }


def _rows(header: list[str], rows: Any) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _breast_cancer(directory: Path) -> Path:
    data, path = load_breast_cancer(), directory / "breast_cancer.csv"
    rows = [
        [*map(float, v), data.target_names[t]] for v, t in zip(data.data, data.target, strict=True)
    ]
    path.write_text(_rows([*data.feature_names, "diagnosis"], rows))
    return path


def _columns(examples: Examples) -> np.ndarray:
    return np.concatenate(list(examples.inputs.values()), axis=1)


def _logistic(examples: Examples, inputs: Any = None) -> float:
    x = _columns(examples) if inputs is None else inputs
    if inputs is None:
        x = (x - x[examples.split.train].mean(axis=0)) / x[examples.split.train].std(axis=0)
    y, split = examples.target.values, examples.split
    model = LogisticRegression(max_iter=5000).fit(x[split.train], y[split.train])
    return float(model.score(x[split.test], y[split.test]))


def _table(directory: Path, _: Path | None) -> Trial:
    spec = pb.TrainingSpec(
        **NAMES, tabular_classification=pb.TabularClassification(target="diagnosis")
    )
    path = _breast_cancer(directory)
    return Trial(spec, path, "accuracy", _logistic, "logistic regression")


def _regression(directory: Path, _: Path | None) -> Trial:
    data, path = load_diabetes(scaled=False), directory / "diabetes.csv"
    path.write_text(_rows([*data.feature_names, "y"], np.c_[data.data, data.target].tolist()))
    spec = pb.TrainingSpec(**NAMES, tabular_regression=pb.TabularRegression(target="y"))

    def reference(examples: Examples) -> float:
        x, y, split = _columns(examples), examples.target.values, examples.split
        model = LinearRegression().fit(x[split.train], y[split.train])
        return float(model.score(x[split.test], y[split.test]))

    return Trial(spec, path, "r2", reference, "least squares")


def _anomaly(directory: Path, _: Path | None) -> Trial:
    spec = pb.TrainingSpec(
        **NAMES, anomaly_detection=pb.AnomalyDetection(label="diagnosis", normal="benign")
    )

    def reference(examples: Examples) -> float:
        x, split = _columns(examples), examples.split
        x = (x - x[split.train].mean(axis=0)) / x[split.train].std(axis=0)
        model = PCA(8).fit(x[split.train])
        errors = ((x - model.inverse_transform(model.transform(x))) ** 2).mean(axis=1)
        return float(roc_auc_score(examples.target.values[split.test], errors[split.test]))

    source = "error of 8 principal components"
    return Trial(spec, _breast_cancer(directory), "roc_auc", reference, source)


def _digits(family: str) -> Callable[[Path, Path | None], Trial]:
    def make(directory: Path, _: Path | None) -> Trial:
        data, path = load_digits(), directory / "digits.npz"
        np.savez(path, sequences=data.images, labels=data.target)
        spec = pb.TrainingSpec(
            **NAMES,
            sequence_classification=pb.SequenceClassification(duplicates=pb.DUPLICATE_POLICY_DROP),
        )
        getattr(spec, family).SetInParent()

        def reference(examples: Examples) -> float:
            images = examples.inputs["sequence"]
            return _logistic(examples, images.reshape(len(images), -1))

        return Trial(spec, path, "accuracy", reference, "logistic regression")

    return make


def _sunspots(family: str) -> Callable[[Path, Path | None], Trial]:
    def make(_: Path, __: Path | None) -> Trial:
        spec = pb.TrainingSpec(
            **NAMES,
            forecasting=pb.Forecasting(
                time="year", target="spots", window=22, horizon=3, season=11
            ),
        )
        getattr(spec, family).SetInParent()

        def reference(examples: Examples) -> float:
            truth, split = examples.target.values, examples.split
            history = examples.inputs["history"][:, -9:, 0]
            inputs = np.c_[history, np.ones(len(history))]
            learned = np.linalg.lstsq(inputs[split.train], truth[split.train])[0]
            return float(np.abs(inputs[split.test] @ learned - truth[split.test]).mean())

        source = "autoregression of order 9 (lower is better)"
        return Trial(spec, SUNSPOTS, "mae", reference, source)

    return make


def _spam(family: str) -> Callable[[Path, Path | None], Trial]:
    def make(directory: Path, data: Path | None) -> Trial:
        lines = _given(data, "sms-spam/SMSSpamCollection.tsv").read_text().splitlines()
        path = directory / "spam.csv"
        path.write_text(_rows(["kind", "sms"], (line.split("\t", 1) for line in lines)))
        spec = pb.TrainingSpec(
            **NAMES,
            text_classification=pb.TextClassification(
                text="sms", target="kind", duplicates=pb.DUPLICATE_POLICY_DROP
            ),
        )
        getattr(spec, family).SetInParent()

        def reference(examples: Examples) -> float:
            texts, split = examples.inputs["sms"][:, 0], examples.split
            words = TfidfVectorizer().fit(texts[split.train])
            return _logistic(examples, words.transform(texts))

        return Trial(spec, path, "accuracy", reference, "TF-IDF and logistic regression")

    return make


def _mnist(family: str, reference: float) -> Callable[[Path, Path | None], Trial]:
    def make(directory: Path, data: Path | None) -> Trial:
        path = directory / "mnist.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
                archive.write(_given(data, f"mnist/{name}"), name)
        spec = pb.TrainingSpec(
            **NAMES,
            image_classification=pb.ImageClassification(duplicates=pb.DUPLICATE_POLICY_KEEP),
        )
        getattr(spec, family).SetInParent()
        return Trial(spec, path, "accuracy", reference, "what is asked of this family")

    return make


def _given(data: Path | None, name: str) -> Path:
    path = (data or Path("--data")) / name
    if not path.exists():
        raise FileNotFoundError(f"{name} is not there: give --data")
    return path


def _jobs() -> Iterator[tuple[str, Callable[[Path, Path | None], Trial]]]:
    yield "table-dense", _table
    yield "regression-dense", _regression
    yield "anomaly-autoencoder", _anomaly
    for family in ("dense", "convolutional", "recurrent", "transformer"):
        yield f"sequence-{family}", _digits(family)
        yield f"forecast-{family}", _sunspots(family)
    for family in ("dense", "embedding", "recurrent", "transformer"):
        yield f"text-{family}", _spam(family)
    yield "mnist-dense", _mnist("dense", 0.975)
    yield "mnist-convolutional", _mnist("convolutional", 0.988)


JOBS: Final = dict(_jobs())

if __name__ == "__main__":
    sys.exit(main())

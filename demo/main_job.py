"""The whole job on real data: `make demo`.

Starts the platform in a fresh directory, takes two data sets that travel with scikit-learn through
it (handwritten digits as images, the breast cancer table as CSV), and checks every step. Ends with
status 0 only if each one held.
"""

import csv
import io
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits

from servery import ApiError, Client
from servery.trainer.v1 import training_pb2 as pb

HELD_OUT: Final = 200
"""Rows kept back from the platform altogether, to ask it about at the end."""

BUNDLE: Final = {
    *("model.onnx", "explain.onnx", "signature.json", "golden.npz", "metrics.json"),
    *("weights.npz", "preprocessing.json"),
    *("profile.json", "statistics.json", "lineage.json"),
    *("curves.png", "confusion.png", "roc.png", "calibration.png"),
}

out = Console(highlight=False, soft_wrap=True)


class StepFailedError(Exception):
    """A step of the demo did not hold."""


def check(what: str, *, holds: bool) -> None:
    """Print that something holds; end the demo if it does not."""
    if not holds:
        raise StepFailedError(what)
    out.print(f"  [green]✓[/green] {what}")


def main() -> int:
    """Run every step; return 0 only if all held."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="servery-demo-") as directory:
        try:
            with platform(Path(directory)) as (address, key), Client(address, key) as servery:
                digits(servery, Path(directory))
                breast_cancer(servery, Path(directory))
                keys(servery, address)
        except (StepFailedError, ApiError) as error:
            out.print(f"  [red]✗ {error}[/red]")
            for log in sorted(Path(directory).glob("data/logs/*.log")):
                out.print(f"[dim]--- {log.name}[/dim]")
                out.print(log.read_text()[-3000:], markup=False)
            return 1
    out.print(f"\nAll steps held, in {time.monotonic() - start:.0f} s.")
    return 0


@contextmanager
def platform(directory: Path) -> Iterator[tuple[str, str]]:
    """Run `servery up` inside the block; yield its address and first key."""
    title("The platform")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key_file = directory / "key"
    servery = Path(sys.executable).with_name("servery")
    process = subprocess.Popen(  # noqa: S603  # our own program
        [
            *(servery, "up", "--port", str(port)),
            *("--data-dir", directory / "data", "--key-file", key_file),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None  # noqa: S101  # for the type checker
        for line in process.stdout:
            out.print(f"  {line.rstrip()}", markup=False)
            if line == "servery: ready\n":
                break
        check("registry, inference, trainer, gateway and Envoy are ready", holds=key_file.exists())
        yield f"127.0.0.1:{port}", key_file.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
    check("the platform drained and stopped", holds=status == 0)


def digits(servery: Client, directory: Path) -> None:
    """Images in, a convolutional network out."""
    title("Images: handwritten digits (scikit-learn), 8×8 grey, ten classes")
    data = load_digits()
    images, labels = data.images.astype(np.float32), data.target
    known, unseen = slice(0, -HELD_OUT), slice(-HELD_OUT, None)
    file = directory / "digits.npz"
    np.savez_compressed(file, images=images[known], labels=labels[known])
    spec = pb.TrainingSpec(image_classification=pb.ImageClassification())
    spec.training.seed = 7
    result = train(servery, file, "digits", spec, floor=0.95)
    answers = ask(servery, "digits", {"image": images[unseen][..., np.newaxis]}, labels[unseen])
    show_digit(images[unseen][0], truth=labels[unseen][0], answer=answers[0])
    golden_rows_reproduce(servery, "digits", result.version)
    latency(servery, "digits", {"image": images[:1][..., np.newaxis]})


def breast_cancer(servery: Client, directory: Path) -> None:
    """A table in, a dense network out."""
    title("Table: breast cancer (scikit-learn), 30 measurements, two classes, as CSV")
    data = load_breast_cancer()
    order = np.random.default_rng(1).permutation(len(data.target))
    rows, diagnoses = data.data[order], data.target_names[data.target[order]]
    file = directory / "breast-cancer.csv"
    with file.open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow([*data.feature_names, "diagnosis"])
        table.writerows(
            [*row, diagnosis]
            for row, diagnosis in zip(rows[:-HELD_OUT], diagnoses[:-HELD_OUT], strict=True)
        )
    spec = pb.TrainingSpec(
        tabular_classification=pb.TabularClassification(target="diagnosis"),
        training=pb.Training(seed=7),
    )
    result = train(servery, file, "breast-cancer", spec, floor=0.9)
    inputs = dict(zip(map(str, data.feature_names), rows[-HELD_OUT:].T, strict=True))
    ask(servery, "breast-cancer", inputs, diagnoses[-HELD_OUT:])
    golden_rows_reproduce(servery, "breast-cancer", result.version)
    latency(servery, "breast-cancer", {name: values[:1] for name, values in inputs.items()})


def train(
    servery: Client, file: Path, model: str, spec: pb.TrainingSpec, *, floor: float
) -> pb.TrainingResult:
    """Upload, train, follow, and check what came out; `floor` is the least test accuracy."""
    start = time.monotonic()
    dataset = servery.datasets.upload(file)
    out.print(f"  data      {file.name}: {dataset.row_count} rows, {len(dataset.columns)} columns")
    spec.dataset = dataset.name
    spec.publication.model = servery.models.name(model)
    spec.publication.alias = "production"
    job = servery.jobs.create(spec)
    for event in servery.jobs.watch(job.name):
        if event.HasField("training_job"):
            job = event.training_job
    if job.state != pb.TRAINING_JOB_STATE_SUCCEEDED:
        raise StepFailedError(f"the job ended with: {job.error.message}")
    result = job.result
    rows = result.rows
    out.print(
        f"  split     {rows.train} train, {rows.validation} validation, {rows.test} test;"
        f" {rows.dropped_missing + rows.dropped_duplicates} left out"
    )
    show_curve(list(result.epochs))
    metrics = result.metrics
    check(
        f"test accuracy {metrics['accuracy']:.4f} (at least {floor}), macro precision"
        f" {metrics['macro_precision']:.4f}, recall {metrics['macro_recall']:.4f},"
        f" F1 {metrics['macro_f1']:.4f}, on the ONNX graph",
        holds=metrics["accuracy"] >= floor,
    )
    parity = result.parity
    check(
        f"parity on {parity.row_count} rows: ONNX differs from Keras by at most"
        f" {parity.max_relative_error:.1e} (allowed {parity.tolerance:.0e}), labels agree"
        f" {parity.label_agreement:.2%}",
        holds=parity.max_relative_error <= parity.tolerance and parity.label_agreement >= 0.9999,
    )
    number = int(result.version.rpartition("/")[2])
    version = servery.models.version(model, number)
    check(f"{result.version} is a whole bundle", holds={f.path for f in version.files} == BUNDLE)
    for stored in version.files:
        out.print(f"      {stored.path:<16} {stored.size_bytes:>8} bytes  {stored.sha256[:16]}…")
    lineage = json.loads(servery.models.read_file(result.version, "lineage.json"))
    digest = dataset.name.rpartition("/")[2]
    check("its lineage names the data it was trained on", holds=digest in json.dumps(lineage))
    latencies = ", ".join(f"{t.batch_size} rows {t.median_us:.0f} µs" for t in result.latencies)
    out.print(f"  graph     {latencies} (median of one run)")
    wait_until_served(servery, model)
    out.print(f"  time      {time.monotonic() - start:.1f} s from upload to served")
    return result


def wait_until_served(servery: Client, model: str) -> None:
    """Return when the alias `production` of the model answers."""
    deadline = time.monotonic() + 20
    while True:
        try:
            servery.model_metadata(model)
        except ApiError as error:
            if time.monotonic() > deadline:
                raise StepFailedError(f"{model} is not served: {error}") from None
            time.sleep(0.05)
        else:
            return


def ask(
    servery: Client, model: str, inputs: dict[str, NDArray[Any]], truth: NDArray[Any]
) -> list[str]:
    """Ask about rows the platform never saw, through the gateway; show some beside the truth."""
    answer = servery.predict(model, inputs)
    labels = [str(label) for label in answer["label"].ravel()]
    table = Table("", *(str(i + 1) for i in range(8)), box=None, pad_edge=False)
    table.add_row("  truth ", *(str(label) for label in truth[:8]))
    table.add_row("  answer", *labels[:8])
    table.add_row("  sure  ", *(f"{row.max():.0%}" for row in answer["probabilities"][:8]))
    out.print(table)
    right = float(np.mean([a == str(t) for a, t in zip(labels, truth, strict=True)]))
    check(f"{right:.1%} of {len(truth)} rows it never saw are right", holds=right > 0.9)
    return labels


def golden_rows_reproduce(servery: Client, model: str, version: str) -> None:
    """Ask the served model about its golden rows: is it the one that was trained?"""
    with np.load(io.BytesIO(servery.models.read_file(version, "golden.npz"))) as golden:
        inputs = {name[6:]: golden[name] for name in golden if name.startswith("input:")}
        want, tolerance = golden["output:probabilities"], float(golden["tolerance"])
        labels = golden["output:label"]
    got = servery.predict(model, inputs)
    error = float(np.max(np.abs(got["probabilities"] - want) / np.maximum(np.abs(want), 1)))
    check(
        f"{len(want)} golden rows come back through the gateway as Keras computed them"
        f" (differ by at most {error:.1e})",
        holds=error <= tolerance and bool(np.all(got["label"] == labels)),
    )


def latency(servery: Client, model: str, inputs: dict[str, NDArray[Any]], calls: int = 300) -> None:
    """Time calls of one row through the gateway."""
    times_ms = []
    for _ in range(calls):
        start = time.perf_counter()
        servery.predict(model, inputs)
        times_ms.append(1000 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times_ms, [50, 99])
    out.print(
        f"  calls     {calls} of one row through the gateway: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )


def keys(servery: Client, address: str) -> None:
    """Show what is refused."""
    title("Keys: what is not permitted is refused")
    created = servery.keys.create({"infer": ["digits"]}, display_name="digits only")
    image = {"image": np.zeros((1, 8, 8, 1), np.float32)}
    with Client(address, created.secret) as limited:
        check("a key for digits may call digits", holds="label" in limited.predict("digits", image))
        refused(lambda: limited.model_metadata("breast-cancer"), "it may not call breast-cancer")
        refused(lambda: list(limited.models.list()), "it may not list models")
        servery.keys.revoke(created.api_key.name)
        refused(lambda: limited.predict("digits", image), "once revoked, its live token is dead")
    with Client(address) as anonymous:
        refused(lambda: anonymous.predict("digits", image), "without a key nothing is answered")


def refused(call: Any, what: str) -> None:
    """Check that a call is refused by the gateway."""
    try:
        call()
    except ApiError as error:
        check(
            f"{what}: {error.code.name}",
            holds="DENIED" in str(error.code) or "AUTH" in str(error.code),
        )
    else:
        raise StepFailedError(f"{what}: but it was answered")


def show_curve(epochs: list[pb.Epoch]) -> None:
    """Print the training curve, at most twelve epochs of it."""
    step = max(1, -(-len(epochs) // 12))
    widest = max(epoch.validation_loss for epoch in epochs)
    for epoch in epochs:
        if (epoch.number - 1) % step == 0 or epoch is epochs[-1]:
            bar = "█" * max(1, round(30 * epoch.validation_loss / widest))
            out.print(
                f"  epoch {epoch.number:>3} loss {epoch.loss:.4f}  validation"
                f" {epoch.validation_loss:.4f} accuracy {epoch.validation_accuracy:.4f}"
                f" [cyan]{bar}[/cyan]"
            )


def show_digit(image: NDArray[Any], *, truth: object, answer: str) -> None:
    """Print one image as characters."""
    shades = " ░▒▓█"
    for i, row in enumerate(image):
        line = "".join(shades[int(value / 16.001 * 5)] * 2 for value in row)
        out.print(f"      {line}" + (f"   truth {truth}, answer {answer}" if i == 3 else ""))


def title(text: str) -> None:
    """Begin a part."""
    out.print(f"\n[bold]{text}[/bold]")


if __name__ == "__main__":
    sys.exit(main())

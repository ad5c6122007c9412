"""What people see of a training job: how far it is, then what came of it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from servery.cli.output import Format, as_dict, err, out, print_json
from servery.client import Client
from servery.errors import ApiError
from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery.trainer.v1 import training_pb2 as pb

_SERVED_WITHIN_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.1


def follow_job(servery: Client, name: str, output: Format) -> int:
    """Show a job's progress until it has ended, then its outcome; return the exit status."""
    job = end_of_job(servery, name)
    if output is Format.JSON:
        print_json(as_dict(job))
    elif job.state == pb.TRAINING_JOB_STATE_SUCCEEDED:
        print_result(job)
    print_failure(job)
    if job.result.version and job.spec.publication.alias and not job.warnings:
        _await_served(servery, job)
    return 0 if job.state == pb.TRAINING_JOB_STATE_SUCCEEDED else 1


def _await_served(servery: Client, job: pb.TrainingJob) -> None:
    """Wait until a version just published answers, so that the next command can ask it."""
    _, _, _, model, _, version = job.result.version.split("/")
    until = job.end_time.seconds + _SERVED_WITHIN_S
    try:
        while time.time() < until:
            if servery.is_served(model, version=version):
                return
            time.sleep(_LOOK_EVERY_S)
            if time.time() >= until:
                err.print(f"{model} {version} is published, but not served yet", markup=False)
    except ApiError as error:  # Who may train need not see the served model.
        if error.code is not grpc.StatusCode.PERMISSION_DENIED:
            err.print(f"whether it is served is not known: {error}", markup=False)


def end_of_job(servery: Client, name: str) -> pb.TrainingJob:
    """Show a job's progress until it has ended, then return it."""
    job = pb.TrainingJob()
    with _progress() as show:
        for event in servery.jobs.watch(name):
            if event.HasField("progress"):
                show(event.progress)
            else:
                job = event.training_job
    return job


def print_failure(job: pb.TrainingJob) -> None:
    """Print why a job did not succeed, or what did not go as asked though it did."""
    if job.state == pb.TRAINING_JOB_STATE_FAILED:
        print_error("[red]failed[/red]", job.error)
    elif job.state == pb.TRAINING_JOB_STATE_CANCELLED:
        err.print("cancelled; nothing was published")
    for warning in job.warnings:
        print_error("[yellow]warning[/yellow]", warning)


def print_error(label: str, error: pb.JobError) -> None:
    """Print the error of a job, a trial or a study behind `label`."""
    reason = ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    err.print(f"{label} {reason}: ", end="")
    err.print(error.message, markup=False)


def print_result(job: pb.TrainingJob) -> None:
    """Print what a job made: rows, metrics, parity, version, and what its task has to show."""
    result = job.result
    rows = result.rows
    out.print(
        f"rows      {rows.total}: {rows.train} train, {rows.validation} validation,"
        f" {rows.test} test; left out {rows.dropped_missing} with missing values,"
        f" {rows.dropped_duplicates} duplicates"
    )
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(result.metrics.items()))
    out.print(f"test      {metrics}")
    out.print(
        f"parity    {result.parity.row_count} rows: largest relative error"
        f" {result.parity.max_relative_error:.1e} (allowed {result.parity.tolerance:.0e})"
        + (f", labels agree {result.parity.label_agreement:.2%}" if result.labels else "")
    )
    if result.HasField("explained"):
        out.print(f"explains  {_explained(result.explained)}", markup=False)
    latencies = "  ".join(f"{t.batch_size}: {t.median_us:.0f} µs" for t in result.latencies)
    out.print(f"latency   {latencies}  (median by batch size)")
    if result.confusion_matrix:
        out.print(_confusion(result))
    elif result.label_metrics:
        out.print(_labels(result))
    if result.slices:
        out.print(_slices(result))
    out.print(f"version   {result.version or 'none; not published'}", soft_wrap=True)


def state_name(job: pb.TrainingJob) -> str:
    """Return the state as people read it."""
    return pb.TrainingJobState.Name(job.state).removeprefix("TRAINING_JOB_STATE_").lower()


def score(result: pb.TrainingResult) -> str:
    """Return the figure that the outcome of a job is judged by, with its name."""
    name = result.score or "accuracy"  # a trainer from before there were others names none
    return f"{name} {result.metrics[name]:.4f}"


def _explained(explained: pb.Explained) -> str:
    if explained.refusal:
        return f"no answers: {explained.refusal}"
    return (
        f"{explained.row_count} rows: attributions miss what they explain by"
        f" {explained.median_gap:.2%} of their absolute sum, at most {explained.largest_gap:.2%}"
        f" (allowed {explained.tolerance:.0%})"
    )


def _labels(result: pb.TrainingResult) -> Table:
    table = Table(
        *("label", "rows", "precision", "recall", "f1"),
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for figures in result.label_metrics:
        shares = (figures.precision, figures.recall, figures.f1)
        table.add_row(figures.label, str(figures.support), *(f"{share:.4f}" for share in shares))
    return table


def _slices(result: pb.TrainingResult) -> Table:
    table = Table("slice", "rows", result.score, box=None, pad_edge=False, header_style="bold")
    for part in result.slices:
        score = part.metrics.get(result.score)
        table.add_row(
            f"{part.column}={part.value}",
            str(part.row_count),
            "" if score is None else f"{score:.4f}",
        )
    return table


def _confusion(result: pb.TrainingResult) -> Table:
    count = len(result.labels)
    table = Table(
        "true \\ predicted", *result.labels, box=None, pad_edge=False, header_style="bold"
    )
    for i, label in enumerate(result.labels):
        row = result.confusion_matrix[i * count : (i + 1) * count]
        table.add_row(label, *(str(cell) if cell else "·" for cell in row))
    return table


@contextmanager
def _progress() -> Iterator["_Show"]:
    """A bar on a terminal, a line for each phase and epoch elsewhere; on standard error."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as progress:
        yield _Bars(progress)


class _Bars:
    """One bar for each phase; the one of TRAINING moves with the steps."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[int, TaskID] = {}

    def __call__(self, now: pb.Progress) -> None:
        if now.phase not in self._tasks:
            for task in self._tasks.values():
                self._progress.update(task, total=1, completed=1)
                self._progress.stop_task(task)
            name = _phase(now)
            self._tasks[now.phase] = self._progress.add_task(name, total=None, note="")
        if now.phase == pb.PHASE_TRAINING and now.max_epochs:
            part = now.step / now.steps_per_epoch if now.steps_per_epoch else 0
            note = f"{_network(now)}epoch {now.epoch}/{now.max_epochs}  {_metrics(now)}"
            if now.eta_s:
                note += f"  at most {now.eta_s:.0f} s left"
            self._progress.update(
                self._tasks[now.phase],
                total=now.max_epochs,
                completed=min(now.epoch + part, now.max_epochs),
                note=note,
            )


class _Lines:
    """One line for each phase and each epoch."""

    def __init__(self) -> None:
        self._last = (0, 0, 0)

    def __call__(self, now: pb.Progress) -> None:
        here = (now.phase, now.network, now.epoch)
        goes_on = now.phase == self._last[0]
        if here == self._last or (goes_on and not now.epoch):
            return
        self._last = here
        epoch = f"epoch {now.epoch}/{now.max_epochs} {_metrics(now)}" if now.epoch else ""
        epoch = f" {_network(now)}{epoch}" if epoch else ""
        err.print(f"{_phase(now)}{epoch}", markup=False)


_Show = _Bars | _Lines


def _phase(now: pb.Progress) -> str:
    return pb.Phase.Name(now.phase).removeprefix("PHASE_").lower()


def _network(now: pb.Progress) -> str:
    """Name the network of an ensemble that is trained."""
    return f"network {now.network} " if now.network else ""


def _metrics(now: pb.Progress) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in sorted(now.metrics.items()))

"""`servery tune`: search hyperparameters, follow and compare trials."""

import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from rich.live import Live
from rich.table import Table

from servery.cli.job_view import print_error
from servery.cli.jobs import priority_of
from servery.cli.output import (
    Format,
    Output,
    as_dict,
    err,
    out,
    print_json,
    print_table,
    short,
    when,
)
from servery.cli.session import connect
from servery.client import Client
from servery.trainer.v1 import training_pb2
from servery.trainer.v1 import tuning_pb2 as pb

app = typer.Typer(help="Searches for the best hyperparameters.", no_args_is_help=True)

StudyArgument = Annotated[str, typer.Argument(help="Id or resource name of the study.")]
_SHOWN = 20
"""Trials in the live table."""


class Sampler(StrEnum):
    """How the next trial is chosen."""

    TPE = "tpe"
    RANDOM = "random"


class Pruner(StrEnum):
    """How trials are stopped early."""

    MEDIAN = "median"
    ASHA = "asha"
    NONE = "none"


class Metric(StrEnum):
    """What the best trial is best in."""

    VALIDATION_LOSS = "validation-loss"
    VALIDATION_ACCURACY = "validation-accuracy"


@app.command()
def start(
    context: typer.Context,
    base: Annotated[
        str, typer.Argument(help="What to vary: a job (id or name), or a TrainingSpec in a .json.")
    ],
    parameter: Annotated[
        list[str],
        typer.Option(
            "--parameter",
            "-p",
            help="PATH=LOW..HIGH, PATH=LOW..HIGH:log or PATH=A|B|C, such as"
            " training.learning_rate=1e-4..1e-1:log or 'dense.hidden_units=[64]|[64,32]'.",
        ),
    ],
    trials: Annotated[
        int, typer.Option(help="Most trials; 0: as many as --max-seconds allows.")
    ] = 20,
    max_seconds: Annotated[float, typer.Option(help="Seconds for all of it; 0: no limit.")] = 0,
    parallel: Annotated[int, typer.Option(help="Trials at the same time.")] = 1,
    sampler: Annotated[Sampler, typer.Option(help="How to choose values.")] = Sampler.TPE,
    pruner: Annotated[Pruner, typer.Option(help="How to stop trials early.")] = Pruner.MEDIAN,
    metric: Annotated[Metric, typer.Option(help="What is looked for.")] = Metric.VALIDATION_LOSS,
    seed: Annotated[int, typer.Option(help="Of the sampler.", min=0)] = 0,
    priority: Annotated[str, typer.Option(help="low, normal, high, or 0 to 100.")] = "normal",
    publish: Annotated[bool, typer.Option(help="Publish the model of the best trial.")] = True,
    detach: Annotated[bool, typer.Option(help="Do not wait for the study to end.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Start a study: train with many hyperparameters, publish the best model."""
    with connect(context) as servery:
        study = servery.studies.create(
            pb.Study(
                spec=_base(servery, base),
                parameters=map(parse_parameter, parameter),
                sampler=pb.Sampler.Value(f"SAMPLER_{sampler.name}"),
                pruner=pb.Pruner.Value(f"PRUNER_{pruner.name}"),
                metric=pb.StudyMetric.Value(f"STUDY_METRIC_{metric.name}"),
                max_trials=trials,
                max_duration_s=max_seconds,
                parallel_trials=parallel,
                seed=seed,
                priority=priority_of(priority),
                without_publication=not publish,
            )
        )
        err.print(f"study {short(study.name)}", markup=False)
        if not detach:
            raise typer.Exit(_follow(servery, study.name, output))
    if output is Format.JSON:
        print_json(as_dict(study))
    else:
        out.print(f"follow it with: servery tune watch {short(study.name)}")


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List studies, the newest first."""
    with connect(context) as servery:
        studies = list(servery.studies.list())
    if output is Format.JSON:
        print_json([as_dict(study) for study in studies])
        return
    print_table(
        ["STUDY", "STATE", "MODEL", "TRIALS", "BEST", "VERSION", "CREATED"],
        (
            (
                short(study.name),
                _state(study),
                short(study.spec.publication.model),
                f"{study.trial_count}/{study.max_trials}",
                f"{study.best_trial.value:.4f}" if study.HasField("best_trial") else "",
                short(study.version),
                when(study.create_time),
            )
            for study in studies
        ),
    )


@app.command()
def show(context: typer.Context, study: StudyArgument, output: Output = Format.TABLE) -> None:
    """Show the trials of a study, the best first."""
    with connect(context) as servery:
        _show(servery, servery.studies.get(_resource_name(servery, study)), output)


@app.command()
def watch(context: typer.Context, study: StudyArgument, output: Output = Format.TABLE) -> None:
    """Follow a study until it has ended; the exit status says how."""
    with connect(context) as servery:
        raise typer.Exit(_follow(servery, _resource_name(servery, study), output))


@app.command()
def cancel(context: typer.Context, study: StudyArgument, output: Output = Format.TABLE) -> None:
    """Ask a study to stop; its trials are cancelled and nothing is published."""
    with connect(context) as servery:
        cancelled = servery.studies.cancel(_resource_name(servery, study))
    if output is Format.JSON:
        print_json(as_dict(cancelled))
    else:
        out.print(f"{short(cancelled.name)}: cancelling")


def parse_parameter(text: str) -> pb.Parameter:
    """Parse `PATH=LOW..HIGH`, `PATH=LOW..HIGH:log` or `PATH=A|B|C`.

    Raises:
        typer.BadParameter: It is none of these.
    """
    path, equals, values = text.partition("=")
    if not equals or not values:
        raise typer.BadParameter(f"-p {text}: give PATH=LOW..HIGH or PATH=A|B|C")
    low, dots, high = values.partition("..")
    if not dots:
        return pb.Parameter(path=path, choices=pb.Choices(values=values.split("|")))
    high, colon, scale = high.partition(":")
    if colon and scale != "log":
        raise typer.BadParameter(f"-p {text}: after the range only :log may stand")
    try:
        if _is_whole(path):
            whole = pb.IntegerRange(low=int(low), high=int(high), log=bool(colon))
            return pb.Parameter(path=path, integers=whole)
        real = pb.FloatRange(low=float(low), high=float(high), log=bool(colon))
        return pb.Parameter(path=path, floats=real)
    except ValueError:
        raise typer.BadParameter(f"-p {text}: a range goes from one number to another") from None


def _is_whole(path: str) -> bool:
    """Tell whether the field at `path` holds whole numbers; the server refuses paths to none."""
    descriptor: Descriptor | None = training_pb2.TrainingSpec.DESCRIPTOR
    field: FieldDescriptor | None = None
    for name in path.split("."):
        field = descriptor.fields_by_name.get(name) if descriptor else None
        descriptor = field.message_type if field else None
    whole = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32)
    return field is not None and field.cpp_type in whole


def _base(servery: Client, base: str) -> training_pb2.TrainingSpec:
    if base.endswith(".json"):
        return json_format.Parse(Path(base).read_bytes(), training_pb2.TrainingSpec())
    name = base if "/" in base else f"{servery.tenant}/trainingJobs/{base}"
    return servery.jobs.get(name).spec


def _follow(servery: Client, name: str, output: Format) -> int:
    """Show the trials of a study as they go, then its outcome; return the exit status."""
    study = pb.Study()
    trials: dict[int, pb.Trial] = {}
    with Live(console=err, refresh_per_second=4, transient=True) as live:
        for event in servery.studies.watch(name):
            if event.HasField("study"):
                study = event.study
            else:
                trials[event.trial.number] = event.trial
            if sys.stderr.isatty():
                newest = sorted(trials.values(), key=lambda trial: -trial.number)[:_SHOWN]
                live.update(_table(newest))
            elif event.HasField("trial") and event.trial.state != pb.TRIAL_STATE_RUNNING:
                err.print("  ".join(_row(event.trial)[1:]), markup=False)
    _show(servery, study, output)
    return 0 if study.state == pb.STUDY_STATE_SUCCEEDED else 1


def _show(servery: Client, study: pb.Study, output: Format) -> None:
    trials = sorted(
        servery.studies.trials(study.name), key=lambda t: (t.rank or sys.maxsize, t.number)
    )
    if output is Format.JSON:
        print_json({"study": study, "trials": trials})
        return
    out.print(_table(trials))
    version = f"; version {study.version}" if study.version else ""
    out.print(f"{_state(study)}, {study.trial_count} trials{version}", soft_wrap=True)
    if study.HasField("error"):
        print_error("[red]failed[/red]", study.error)


def _table(trials: Iterable[pb.Trial]) -> Table:
    columns = ("RANK", "TRIAL", "STATE", "VALUE", "EPOCH", "VALUES", "JOB")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for trial in trials:
        table.add_row(*_row(trial))
    return table


def _row(trial: pb.Trial) -> tuple[str, ...]:
    values = (f"{one.path}={_rounded(one.value)}" for one in trial.assignments)
    return (
        str(trial.rank or ""),
        str(trial.number),
        pb.TrialState.Name(trial.state).removeprefix("TRIAL_STATE_").lower(),
        f"{trial.value:.4f}" if trial.HasField("value") else "",
        str(trial.epoch or ""),
        "  ".join(values),
        short(trial.training_job),
    )


def _rounded(value: str) -> str:
    """Return a value as people read it."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value.strip('"')


def _state(study: pb.Study) -> str:
    return pb.StudyState.Name(study.state).removeprefix("STUDY_STATE_").lower()


def _resource_name(servery: Client, study: str) -> str:
    return study if "/" in study else f"{servery.tenant}/studies/{study}"

"""`servery train`: a file in, a proven and served model out."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format

from servery.cli.job_view import follow_job
from servery.cli.jobs import priority_of
from servery.cli.output import Format, Output, as_dict, err, out, print_json, short
from servery.cli.schema import Fit, SplitBy, clips, column_types, fill, sizing
from servery.cli.session import connect
from servery.packing import ARRAYS
from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb


class Task(StrEnum):
    """What to learn of a row."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    MULTI_LABEL = "multi-label"
    ANOMALY = "anomaly"
    RECOMMEND = "recommend"
    FORECAST = "forecast"


class Missing(StrEnum):
    """What to do with rows that have an empty cell."""

    REFUSE = "refuse"
    DROP_ROWS = "drop-rows"
    IMPUTE_MEDIAN = "impute-median"
    IMPUTE_MODE = "impute-mode"
    IMPUTE_CONSTANT = "impute-constant"


class Duplicates(StrEnum):
    """What to do with repeated rows."""

    REFUSE = "refuse"
    DROP = "drop"
    KEEP = "keep"


class Family(StrEnum):
    """Which kind of network."""

    DENSE = "dense"
    CONVOLUTIONAL = "convolutional"
    EMBEDDING = "embedding"
    RECURRENT = "recurrent"
    TRANSFORMER = "transformer"
    AUTOENCODER = "autoencoder"
    TWO_TOWER = "two_tower"
    CUSTOM = "custom"


class Framework(StrEnum):
    """Which library."""

    KERAS = "keras"
    PYTORCH = "pytorch"


def train(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            exists=True,
            help="A table (.csv, .jsonl, .parquet), labelled images (.npz), two IDX files, or a"
            " folder or archive with images or texts in one folder per class.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Id of the model to publish, such as churn.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="Column (.csv) or array (.npz: labels) with the class or number; for multi-label"
            " the columns of the labels, by commas; for anomaly what tells normal rows, if any."
        ),
    ] = None,
    task: Annotated[Task, typer.Option(help="What to learn of a row.")] = Task.CLASSIFICATION,
    separator: Annotated[
        str, typer.Option(help="Of multi-label: --target is one column that lists labels, with it.")
    ] = "",
    normal: Annotated[
        str, typer.Option(help="Of anomaly: what --target says of normal rows.")
    ] = "",
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(help="Of anomaly: share of normal rows that may be called one; 0.01."),
    ] = None,
    time: Annotated[str, typer.Option(help="Of forecast and recommend: column of the times.")] = "",
    series: Annotated[
        str, typer.Option(help="Of forecast: the column that tells several series apart.")
    ] = "",
    window: Annotated[int, typer.Option(help="Of forecast: steps to look back on; 0: 24.")] = 0,
    horizon: Annotated[int, typer.Option(help="Of forecast: steps to tell; 0: 1.")] = 0,
    user: Annotated[str, typer.Option(help="Of recommend: column of the users.")] = "user",
    item: Annotated[str, typer.Option(help="Of recommend: column of the items.")] = "item",
    rating: Annotated[str, typer.Option(help="Of recommend: column of the ratings.")] = "",
    min_rating: Annotated[
        float | None, typer.Option(help="Of recommend: rows with a lower --rating do not count.")
    ] = None,
    slices: Annotated[
        str | None, typer.Option("--slice-by", help="Columns to report the figures by, by commas.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Columns to learn from, by commas; default: all others.")
    ] = None,
    column_type: Annotated[
        list[str] | None,
        typer.Option(
            "--type", help="COLUMN=numeric, text, boolean or date, if it looks otherwise."
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Learn from the words of this column, and no other.")
    ] = None,
    images: Annotated[str, typer.Option(help="Array with the images.")] = "images",
    fit: Annotated[Fit | None, typer.Option(help="How image files get the --size.")] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT that image files get.")] = "",
    clip: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=LOW:HIGH to hold numbers between; 1%:99% are quantiles."),
    ] = None,
    split: Annotated[SplitBy, typer.Option(help="How rows are divided.")] = SplitBy.STRATIFIED,
    split_column: Annotated[str, typer.Option(help="Column of the groups or times.")] = "",
    missing: Annotated[Missing, typer.Option(help="Rows with an empty cell.")] = Missing.REFUSE,
    fills: Annotated[
        list[str] | None,
        typer.Option(
            "--fill",
            help="Of impute-constant: KIND=VALUE, KIND as of --type; numeric=0, text=missing.",
        ),
    ] = None,
    duplicates: Annotated[Duplicates, typer.Option(help="Repeated rows.")] = Duplicates.REFUSE,
    family: Annotated[
        Family | None,
        typer.Option(help="Default: dense for tables and texts, convolutional for images."),
    ] = None,
    framework: Annotated[
        Framework, typer.Option(help="Library to train it with.")
    ] = Framework.KERAS,
    module: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Python file that builds the network."),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            "--from",
            help="Go on from a version: MODEL, MODEL@ALIAS, MODEL@NUMBER or a resource name.",
        ),
    ] = "",
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="PATH=VALUE, any other field of the TrainingSpec, such as"
            " training.optimizer=OPTIMIZER_ADAMW or 'dense.hidden_units=[64,32]'.",
        ),
    ] = None,
    max_epochs: Annotated[int, typer.Option(help="Most epochs; 0: the server's default.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows per step; 0: the server's default.")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="Step size of Adam.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.", min=0)] = 0,
    alias: Annotated[
        str, typer.Option(help="Alias to point at the new version; empty: none.")
    ] = "production",
    priority: Annotated[str, typer.Option(help="low, normal, high, or 0 to 100.")] = "normal",
    cores: Annotated[int, typer.Option(help="CPU cores; 0: an equal share of the machine.")] = 0,
    memory: Annotated[int, typer.Option(help="Bytes of memory; 0: an equal share.")] = 0,
    deadline: Annotated[float, typer.Option(help="Seconds it may run; 0: no limit.")] = 0,
    publish: Annotated[bool, typer.Option(help="Publish the model once it is proven.")] = True,
    detach: Annotated[bool, typer.Option(help="Do not wait for the job to end.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Upload a file, train a model on it, prove it, publish it and serve it."""
    constants = fill(fills)
    if fills and missing is not Missing.IMPUTE_CONSTANT:
        raise typer.BadParameter("--fill goes with --missing impute-constant")
    with connect(context) as servery:
        dataset = servery.datasets.upload(*files)
        err.print(f"dataset {short(dataset.name)[:12]}: {dataset.row_count} rows", markup=False)
        spec = pb.TrainingSpec(
            dataset=dataset.name,
            training=pb.Training(
                max_epochs=max_epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                seed=seed,
            ),
            split=pb.Split(method=split.method, column=split_column),
            framework=pb.Framework.Value(f"FRAMEWORK_{framework.name}"),
            publication=pb.Publication(model=servery.models.name(model), alias=alias),
            base_version=servery.models.version_name(base) if base else "",
        )
        gaps = pb.MissingPolicy.Value(f"MISSING_POLICY_{missing.name}")
        repeated = pb.DuplicatePolicy.Value(f"DUPLICATE_POLICY_{duplicates.name}")
        if dataset.format == dataset_pb2.DATASET_FORMAT_TEXTS:
            target, text = target or "label", text or "text"
        if task is Task.FORECAST:
            spec.forecasting.CopyFrom(
                pb.Forecasting(
                    time=time,
                    target=target or "",
                    covariates=features.split(",") if features else [],
                    series=series,
                    window=window,
                    horizon=horizon,
                )
            )
        elif task is Task.RECOMMEND:
            spec.recommendation.CopyFrom(
                pb.Recommendation(
                    user=user,
                    item=item,
                    rating=rating,
                    min_rating=min_rating,
                    time=time,
                    duplicates=repeated,
                )
            )
        elif dataset.format not in ARRAYS:
            message = _teach(spec, task, target, text)
            if task is Task.MULTI_LABEL:
                message.separator = separator
            if task is Task.ANOMALY:
                message.normal = normal
                message.MergeFrom(pb.AnomalyDetection(false_alarm_rate=false_alarm_rate))
            message.slice_columns.extend(slices.split(",") if slices else [])
            message.missing = gaps
            message.duplicates = repeated
            if text is None:
                message.features.extend(features.split(",") if features else [])
                for column, kind in column_types(column_type).items():
                    message.column_types[column] = kind
                for column, ends in clips(clip).items():
                    message.clip[column].CopyFrom(ends)
                message.fill.CopyFrom(constants)
            else:
                message.text = text
        elif _holds_sequences(dataset):
            if task is not Task.CLASSIFICATION:
                raise typer.BadParameter(f"--task {task}: sequences are classified only")
            spec.sequence_classification.labels = target or ""
            spec.sequence_classification.duplicates = repeated
        else:
            message = _show(spec, task, target or "")
            message.images = images
            message.duplicates = repeated
            message.sizing.CopyFrom(sizing(fit, size))
        if family is not None:
            getattr(spec, family.value).SetInParent()
        if module is not None:
            if family not in (None, Family.CUSTOM):
                raise typer.BadParameter(f"--module builds a network, --family {family} another")
            spec.custom.module = _source(module)
        _assign(spec, fields or [])
        terms = pb.TrainingJob(
            priority=priority_of(priority),
            resources=pb.Resources(cores=cores, memory_bytes=memory),
            deadline_s=deadline,
            without_publication=not publish,
        )
        job = servery.jobs.create(spec, terms)
        err.print(f"job {short(job.name)}", markup=False)
        if not detach:
            raise typer.Exit(follow_job(servery, job.name, output))
    if output is Format.JSON:
        print_json(as_dict(job))
    else:
        out.print(f"follow it with: servery jobs watch {short(job.name)}")


def _teach(spec: pb.TrainingSpec, task: Task, target: str | None, text: str | None) -> Any:
    """Say what the rows of a table are to teach; return the message of the task."""
    if task is Task.ANOMALY:
        if text is not None:
            raise typer.BadParameter("--task anomaly learns from columns, not from --text")
        spec.anomaly_detection.label = target or ""
        return spec.anomaly_detection
    if target is None:
        raise typer.BadParameter("give --target COLUMN: what a table's rows are to teach")
    message: Any = getattr(spec, f"{'tabular' if text is None else 'text'}_{task.name.lower()}")
    if task is Task.MULTI_LABEL:
        message.targets.extend(target.split(","))
    else:
        message.target = target
    return message


def _source(module: Path) -> str:
    try:
        return module.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"--module {module}: is not UTF-8 text") from None


def _show(spec: pb.TrainingSpec, task: Task, target: str) -> Any:
    """Say what images are to teach; return the message of the task."""
    match task:
        case Task.CLASSIFICATION:
            spec.image_classification.labels = target
            return spec.image_classification
        case Task.REGRESSION:
            spec.image_regression.values = target
            return spec.image_regression
        case Task.MULTI_LABEL:
            spec.image_multi_label.labels = target
            return spec.image_multi_label
        case _:
            raise typer.BadParameter(f"--task {task} learns from tables, not from images")


def _holds_sequences(dataset: dataset_pb2.Dataset) -> bool:
    arrays = {column.name for column in dataset.columns}
    return "sequences" in arrays and "images" not in arrays


def _assign(spec: pb.TrainingSpec, fields: list[str]) -> None:
    """Set fields of the spec, each given as `path=value`; values are JSON, or else texts."""
    for field in fields:
        path, _, text = field.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        for name in reversed(path.split(".")):
            value = {name: value}
        try:
            spec.MergeFrom(json_format.ParseDict(value, pb.TrainingSpec()))
        except json_format.ParseError as error:
            raise typer.BadParameter(f"--set {field}: {error}") from None

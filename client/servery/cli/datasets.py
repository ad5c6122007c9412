"""`servery datasets`: upload files, see what is in them and what is wrong with them."""

from pathlib import Path
from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, out, print_json, print_table, short, when
from servery.cli.schema import SplitBy, column_types, ranges
from servery.cli.session import connect
from servery.trainer.v1 import dataset_pb2 as pb

app = typer.Typer(help="Datasets that models are trained on.", no_args_is_help=True)

Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type", help="COLUMN=numeric, text, boolean or date, if it looks otherwise; repeatable."
    ),
]
Dataset = Annotated[str, typer.Argument(help="Id of the dataset, or how it begins.")]


@app.command()
@app.command("upload", hidden=True)
def create(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            exists=True,
            help="A table (.csv, .jsonl, .parquet), arrays (.npz), a .txt file of one row a line,"
            " two IDX files, or images or texts in one folder per class: the folder that holds"
            " those, or a .zip, .tar or .tar.gz of it.",
        ),
    ],
    types: Types = None,
    output: Output = Format.TABLE,
) -> None:
    """Upload a file and show what the server found in it.

    An upload that breaks off goes on where it broke off when the command is given again.
    """
    with connect(context) as servery:
        print_dataset(servery.datasets.upload(*files, column_types=column_types(types)), output)


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List datasets, the newest first."""
    with connect(context) as servery:
        datasets = list(servery.datasets.list())
    if output is Format.JSON:
        print_json([as_dict(dataset) for dataset in datasets])
    else:
        print_table(
            ["DATASET", "FILE", "ROWS", "COLUMNS", "CREATED"],
            (
                (
                    short(d.name)[:12],
                    d.display_name,
                    d.row_count,
                    len(d.columns),
                    when(d.create_time),
                )
                for d in datasets
            ),
        )


@app.command()
def show(context: typer.Context, dataset: Dataset, output: Output = Format.TABLE) -> None:
    """Show what is in a dataset: its columns, what they are, and figures of their values."""
    with connect(context) as servery:
        print_dataset(servery.datasets.find(dataset), output)


@app.command()
def validate(
    context: typer.Context,
    dataset: Dataset,
    target: Annotated[str, typer.Option(help="Column to be learned.")] = "",
    features: Annotated[
        str, typer.Option(help="Columns to learn from, by commas; default: all others.")
    ] = "",
    types: Types = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(
            "--range", help="COLUMN=MIN:MAX its numbers are to be in, either may lack; repeatable."
        ),
    ] = None,
    split: Annotated[SplitBy, typer.Option(help="How rows will be divided.")] = SplitBy.STRATIFIED,
    split_column: Annotated[
        str, typer.Option(help="Column of the groups or times; or of times to look out for.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the division.", min=0)] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Say what of a dataset is likely to spoil a model; exit with 1 if training would fail."""
    with connect(context) as servery:
        request = pb.ValidateDatasetRequest(
            name=servery.datasets.find(dataset).name,
            target=target,
            features=features.split(",") if features else [],
            column_types=column_types(types),
            ranges=ranges(bounds),
            split_method=split.method,
            split_column=split_column,
            seed=seed,
        )
        report = servery.datasets.validate(request)
    if output is Format.JSON:
        print_json(as_dict(report))
    else:
        _print_findings(report)
    if any(finding.severity == pb.FINDING_SEVERITY_ERROR for finding in report.findings):
        raise typer.Exit(1)


def print_dataset(dataset: pb.Dataset, output: Format) -> None:
    """Print a dataset with its columns."""
    if output is Format.JSON:
        print_json(as_dict(dataset))
        return
    kind = pb.DatasetFormat.Name(dataset.format).removeprefix("DATASET_FORMAT_")
    out.print(
        f"{short(dataset.name)[:12]}  {dataset.display_name}  {kind}, {dataset.size_bytes:,} bytes,"
        f" {dataset.row_count:,} rows",
        markup=False,
    )
    print_table(
        ["COLUMN", "TYPE", "MISSING", "DISTINCT", "RANGE", "MEAN", "DEVIATION"],
        (
            (
                column.name,
                _type(column),
                f"{column.missing_count / dataset.row_count:.1%}" if column.missing_count else "",
                "10000+" if column.distinct_count == 10_000 else column.distinct_count,
                f"{column.minimum:g} to {column.maximum:g}" if column.HasField("minimum") else "",
                f"{column.mean:g}" if column.HasField("mean") else "",
                f"{column.standard_deviation:g}" if column.HasField("mean") else "",
            )
            for column in dataset.columns
        ),
    )


def _type(column: pb.Column) -> str:
    if column.shape:
        return column.dtype + str(list(column.shape)).replace("-1", "*")
    name = pb.ColumnType.Name(column.type).removeprefix("COLUMN_TYPE_").lower()
    return f"{name} (declared)" if column.declared else name


def _print_findings(report: pb.ValidateDatasetResponse) -> None:
    print_table(
        ["SEVERITY", "FINDING", "COLUMN", "ROWS", "WHAT"],
        (
            (
                pb.FindingSeverity.Name(finding.severity).removeprefix("FINDING_SEVERITY_"),
                pb.FindingKind.Name(finding.kind).removeprefix("FINDING_KIND_").lower(),
                finding.column,
                " ".join(map(str, finding.rows[:5])) + (" …" if len(finding.rows) > 5 else ""),
                finding.message,
            )
            for finding in report.findings
        ),
    )
    out.print(f"{len(report.findings)} findings in {report.row_count:,} rows")

"""`servery datasets`: upload files and see what is in them."""

from pathlib import Path
from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, print_json, print_table, short, when
from servery.cli.session import connect
from servery.trainer.v1 import dataset_pb2 as pb

app = typer.Typer(help="Datasets that models are trained on.", no_args_is_help=True)


@app.command()
def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .csv or .npz file.")],
    output: Output = Format.TABLE,
) -> None:
    """Upload a file and show what the server found in it."""
    with connect(context) as servery:
        show(servery.datasets.upload(file), output)


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


def show(dataset: pb.Dataset, output: Format) -> None:
    """Print a dataset with its columns."""
    if output is Format.JSON:
        print_json(as_dict(dataset))
        return
    print_table(
        ["COLUMN", "TYPE", "MISSING", "DISTINCT", "RANGE"],
        (
            (
                column.name,
                column.dtype + str(list(column.shape))
                if column.shape
                else pb.ColumnType.Name(column.type).removeprefix("COLUMN_TYPE_").lower(),
                column.missing_count,
                column.distinct_count,
                f"{column.minimum:g} to {column.maximum:g}" if column.HasField("minimum") else "",
            )
            for column in dataset.columns
        ),
    )

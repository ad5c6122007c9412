"""`servery predict`: rows of a file, or values on the command line, to answers."""

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from servery.cli.output import Format, Output, print_json, print_table
from servery.cli.session import connect
from servery.inference.v1 import grpc_service_pb2 as pb


def predict(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Id of the model.")],
    file: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="Rows: .csv, .npz or .json."),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option("--input", help='JSON instead of a file: {"input": [values], …}.'),
    ] = None,
    version: Annotated[str, typer.Option(help="Number of a version; default: production.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most rows of the file to send.")] = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Ask a served model.

    A file may hold more columns or arrays than the model takes: those of its inputs are sent.
    """
    if (file is None) == (values is None):
        raise typer.BadParameter("give a FILE or --input JSON, one of them")
    with connect(context) as servery:
        metadata = servery.model_metadata(model, version=version)
        inputs = _read(file, metadata, limit) if file else _object(json.loads(values or ""))
        answers = servery.predict(model, inputs, version=version)
    if output is Format.JSON:
        print_json({name: array.tolist() for name, array in answers.items()})
        return
    columns = list(answers)
    rows = len(next(iter(answers.values())))
    print_table(
        ["ROW", *(name.upper() for name in columns)],
        ([i + 1, *(_cell(answers[name][i]) for name in columns)] for i in range(rows)),
    )


def _read(file: Path, metadata: pb.ModelMetadataResponse, limit: int) -> dict[str, Any]:
    wanted = [tensor.name for tensor in metadata.inputs]
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
        if len(wanted) == 1 and wanted[0] not in found and f"{wanted[0]}s" in found:
            found[wanted[0]] = found[f"{wanted[0]}s"]  # `images` of a dataset, input `image`.
    elif file.suffix == ".json":
        found = _object(json.loads(file.read_text()))
    else:
        with file.open(newline="") as lines:
            table = list(csv.DictReader(lines))
        names = table[0] if table else []
        found = {name: [row[name] for row in table] for name in names}
        numeric = {t.name for t in metadata.inputs if t.datatype != "BYTES"}
        for name in numeric & found.keys():
            found[name] = [float(cell) if cell else float("nan") for cell in found[name]]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{file.name} lacks {', '.join(missing)}; it has {', '.join(found)}")
    return {name: found[name][:limit] for name in wanted}


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError('inputs are a JSON object: {"input": [values], …}')
    return document


def _cell(value: Any) -> str:
    flat = np.ravel(value)
    if flat.dtype.kind == "f":
        return " ".join(f"{number:.4f}" for number in flat)
    return " ".join(str(item) for item in flat)

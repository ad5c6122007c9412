"""`servery predict`: rows of a file, or values on the command line, to answers."""

import csv
import json
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from servery.cli.explanation import ATTRIBUTION, facts, largest
from servery.cli.output import Format, Output, out, print_json, print_table
from servery.cli.session import connect
from servery.inference.v1 import grpc_service_pb2 as pb


def predict(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Id of the model.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, help="Rows: .csv, .jsonl, .parquet, .npz or .json."
        ),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option("--input", help='JSON instead of a file: {"input": \\[values], …}.'),
    ] = None,
    version: Annotated[str, typer.Option(help="Number of a version; default: production.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most rows of the file to send.")] = 1000,
    explain: Annotated[
        bool, typer.Option("--explain", help="Ask what each value adds to the answer.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Ask a served model.

    A file may hold more columns or arrays than the model takes: those of its inputs are sent.

    With --explain, the values that weigh most come first, row by row, if the version has a graph
    that explains; -o json has all of them.
    """
    if (file is None) == (values is None):
        raise typer.BadParameter("give a FILE or --input JSON, one of them")
    with connect(context) as servery:
        metadata = servery.model_metadata(model, version=version)
        inputs = read_inputs(file, metadata, limit) if file else _object(json.loads(values or ""))
        ask = servery.explain if explain else servery.predict
        answers = ask(model, inputs, version=version)
    rows = len(next(iter(answers.values())))
    if output is Format.JSON:
        print_json({name: array.tolist() for name, array in answers.items()})
    elif any(name.startswith(ATTRIBUTION) for name in answers):
        for row in range(rows):
            _print_explanation(inputs, answers, row)
    else:
        print_table(
            ["ROW", *(name.upper() for name in answers)],
            ([i + 1, *(_cell(values[i]) for values in answers.values())] for i in range(rows)),
        )


def read_inputs(file: Path, metadata: pb.ModelMetadataResponse, limit: int) -> dict[str, Any]:
    """Return the inputs of a model from a file, by name, for its first `limit` rows.

    Raises:
        ValueError: The file lacks an input, or a cell is no number where one is wanted.
    """
    wanted = [tensor.name for tensor in metadata.inputs]
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            found = dict(arrays)
        if len(wanted) == 1 and wanted[0] not in found and f"{wanted[0]}s" in found:
            found[wanted[0]] = found[f"{wanted[0]}s"]  # `images` of a dataset, input `image`.
    elif file.suffix == ".json":
        found = _object(json.loads(file.read_text()))
    else:
        rows = _rows(file, limit)
        names = dict.fromkeys(name for row in rows for name in row)
        texts = {t.name for t in metadata.inputs if t.datatype == "BYTES"}
        found = {
            name: [(_text if name in texts else _number)(row.get(name)) for row in rows]
            for name in names
            if name in wanted
        }
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{file.name} lacks {', '.join(missing)}; the model takes {wanted}")
    return {name: found[name][:limit] for name in wanted}


def _rows(file: Path, limit: int) -> list[dict[str, Any]]:
    """Return the first rows of a table."""
    if file.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise ValueError("to read .parquet, install pyarrow beside servery") from None
        batch = next(parquet.ParquetFile(file).iter_batches(batch_size=limit), None)
        return batch.to_pylist() if batch else []
    with file.open(newline="", encoding="utf-8-sig") as lines:
        if file.suffix == ".jsonl":
            # numbers as they are written: where a model takes texts, 1.50 is not 1.5
            read = partial(json.loads, parse_int=str, parse_float=str)
            documents = (read(line) for line in lines if line.strip())
            return [_object(document) for document in islice(documents, limit)]
        return list(islice(csv.DictReader(lines), limit))


def _text(cell: Any) -> str:
    """Write a cell as the trainer read it: a model knows values by these texts."""
    if cell is None or cell != cell:  # NaN
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, datetime):
        return cell.isoformat(" ", "seconds")
    return str(cell).strip()


def _number(cell: Any) -> float:
    return float("nan") if cell in (None, "") else float(cell)


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError('inputs are a JSON object: {"input": [values], …}')
    return document


def _print_explanation(
    inputs: Mapping[str, Any], answers: Mapping[str, NDArray[Any]], row: int
) -> None:
    heads = " ".join(f"{name}={_cell(value)}" for name, value in facts(answers, row).items())
    out.print(f"row {row + 1}: {heads}", markup=False)
    shares, rest = largest(inputs, answers, row)
    print_table(
        ["INPUT", "VALUE", "ATTRIBUTION"],
        ((share.input, _cell(share.value), f"{share.attribution:+.4f}") for share in shares),
    )
    if rest:
        out.print(f"and {len(rest)} smaller ones, together {sum(rest):+.4f}", markup=False)


def _cell(value: Any) -> str:
    flat = np.ravel(value)
    if flat.dtype.kind == "f":
        return " ".join(f"{number:.4f}" for number in flat)
    return " ".join(str(item) for item in flat)

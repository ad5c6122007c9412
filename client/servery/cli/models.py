"""`servery models`: what there is, which version is production, and moving that."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from servery.cli.output import Format, Output, as_dict, out, print_json, print_table, short, when
from servery.cli.session import connect

EXPLANATION: Final = "explain.onnx"
"""File of a version that can explain its answers."""

app = typer.Typer(help="Models, versions and aliases.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="Id of the model.")]


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List models with their aliases."""
    with connect(context) as servery:
        models = list(servery.models.list())
    if output is Format.JSON:
        print_json([as_dict(model) for model in models])
    else:
        print_table(
            ["MODEL", "LATEST", "ALIASES", "CREATED"],
            (
                (
                    short(model.name),
                    model.latest_version,
                    " ".join(f"{short(a.name)}={short(a.version)}" for a in model.aliases),
                    when(model.create_time),
                )
                for model in models
            ),
        )


@app.command()
def versions(context: typer.Context, model: Model, output: Output = Format.TABLE) -> None:
    """List the versions of a model, the newest first."""
    with connect(context) as servery:
        found = list(servery.models.versions(model))
    if output is Format.JSON:
        print_json([as_dict(version) for version in found])
    else:
        print_table(
            ["VERSION", "CREATED", "SIZE", "EXPLAINS", "DIGEST", "METRICS"],
            (
                (
                    short(version.name),
                    when(version.create_time),
                    f"{sum(file.size_bytes for file in version.files) / 1024:.0f} KiB",
                    "yes" if any(file.path == EXPLANATION for file in version.files) else "no",
                    version.digest[:12],
                    " ".join(
                        f"{name}={value:.4f}" for name, value in sorted(version.metrics.items())
                    ),
                )
                for version in found
            ),
        )


@app.command()
def show(
    context: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(help="Number of the version.", min=1)],
    file: Annotated[str, typer.Option(help="A JSON file of the bundle.")] = "metrics.json",
) -> None:
    """Print a JSON file of a version's bundle: metrics, signature, lineage, profile, statistics."""
    if not file.endswith(".json"):
        raise typer.BadParameter(f"--file {file}: for others than .json see `models download`")
    with connect(context) as servery:
        name = f"{servery.models.name(model)}/versions/{version}"
        print_json(json.loads(servery.models.read_file(name, file)))


@app.command()
def download(
    context: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(help="Number of the version.", min=1)],
    to: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder; default: MODEL-VERSION.")
    ] = None,
) -> None:
    """Save all files of a version's bundle: its graphs, its plots, its figures."""
    with connect(context) as servery:
        folder = to or Path(f"{short(servery.models.name(model))}-{version}")
        for path in servery.models.download(model, version, folder):
            out.print(str(path), markup=False)


@app.command()
def promote(
    context: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(help="Number of the version.", min=1)],
    alias: Annotated[str, typer.Option(help="Which alias to move.")] = "production",
    output: Output = Format.TABLE,
) -> None:
    """Point an alias at a version: promotion, or rollback to an older one."""
    with connect(context) as servery:
        moved = servery.models.promote(model, version, alias)
    if output is Format.JSON:
        print_json(as_dict(moved))
    else:
        out.print(f"{model}: {alias} is version {version}")

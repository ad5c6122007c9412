"""`servery routes`: which pools of inference servers answer for a model."""

from collections.abc import Collection
from typing import Annotated

import typer
from rich.markup import escape

from servery.cli.output import Format, Output, as_dict, err, out, print_json, print_table
from servery.cli.session import connect
from servery.gateway.v1 import route_pb2 as pb

app = typer.Typer(
    help="Routes: which pools of inference servers answer for a model.", no_args_is_help=True
)

Model = Annotated[str, typer.Argument(help="Id of your tenant's model, or its resource name.")]


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the routes that were set; every other model goes to the pool `default`."""
    with connect(context) as servery:
        routes, pools = list(servery.routes.list()), servery.routes.pools()
    if output is Format.JSON:
        print_json({"routes": [as_dict(route) for route in routes], "pools": pools})
        return
    _print_table(routes)
    out.print(f"pools: {', '.join(pools)}")


@app.command("set")
def set_(
    context: typer.Context,
    model: Model,
    pool: Annotated[
        list[str],
        typer.Option(help="POOL, or POOL=WEIGHT for a share of the calls. Repeat for a canary."),
    ],
    mirror: Annotated[
        str, typer.Option(help="Pool that gets a copy of every call but streams.")
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """Replace the route of a model; in force when this returns, and no call fails for it."""
    with connect(context) as servery:
        _show(servery.routes.set(model, dict(map(_share, pool)), mirror), output)


@app.command()
def show(context: typer.Context, model: Model, output: Output = Format.TABLE) -> None:
    """Show the route of a model."""
    with connect(context) as servery:
        _show(servery.routes.get(model), output)


@app.command()
def delete(context: typer.Context, model: Model, output: Output = Format.TABLE) -> None:
    """Let a model go to the pool `default` again, as if its route was never set."""
    with connect(context) as servery:
        _show(servery.routes.set(model, {}), output)


def _share(text: str) -> tuple[str, int]:
    pool, equals, weight = text.partition("=")
    if equals and not weight.isdecimal():
        raise typer.BadParameter(f"--pool is {text!r}; write it like gpu or gpu=10")
    return pool, int(weight) if equals else 1


def _show(route: pb.Route, output: Format) -> None:
    if output is Format.JSON:
        print_json(as_dict(route))
    else:
        _print_table([route])


def _print_table(routes: Collection[pb.Route]) -> None:
    print_table(
        ["MODEL", "POOLS", "MIRROR"],
        ((route.name, _shares(route), route.mirror_pool or "-") for route in routes),
    )
    for warning in dict.fromkeys(w.message for route in routes for w in route.warnings):
        err.print(f"[yellow]warning[/yellow]: {escape(warning)}")


def _shares(route: pb.Route) -> str:
    whole = sum(pool.weight for pool in route.pools)
    return " ".join(f"{pool.pool}:{100 * pool.weight / whole:.4g}%" for pool in route.pools)

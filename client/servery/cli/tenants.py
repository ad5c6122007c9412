"""`servery tenants`: create and list tenants."""

from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, out, print_json, print_table, short, when
from servery.cli.session import connect

app = typer.Typer(help="Tenants: the owners of models, data and keys.", no_args_is_help=True)


@app.command()
def create(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="Its id: small letters, digits and -.")],
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Create a tenant."""
    with connect(context) as servery:
        created = servery.tenants.create(tenant, display_name=name)
    if output is Format.JSON:
        print_json(as_dict(created))
    else:
        out.print(f"{created.name} created")


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List tenants."""
    with connect(context) as servery:
        tenants = list(servery.tenants.list())
    if output is Format.JSON:
        print_json([as_dict(tenant) for tenant in tenants])
    else:
        print_table(
            ["TENANT", "NAME", "CREATED"],
            ((short(t.name), t.display_name, when(t.create_time)) for t in tenants),
        )

"""`servery identities`: refuse people and programs that the company vouches for."""

from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, out, print_json, print_table, when
from servery.cli.session import connect

app = typer.Typer(
    help="Identities of the company's issuer and of certificates: whom to refuse.",
    no_args_is_help=True,
)

Identity = Annotated[
    str,
    typer.Argument(
        help="ISSUER:SUBJECT, such as company:alice@example.org; the SPIFFE id of a certificate; or"
        " the resource name that `servery usage --by api_key` shows."
    ),
]
Tenant = Annotated[str | None, typer.Option(help="Tenant id; default: your own.")]


@app.command()
def revoke(
    context: typer.Context,
    identity: Identity,
    tenant: Tenant = None,
    output: Output = Format.TABLE,
) -> None:
    """Refuse an identity from now on, whatever the company says of it."""
    with connect(context) as servery:
        revoked = servery.identities.revoke(identity, _resource_name(tenant))
    if output is Format.JSON:
        print_json(as_dict(revoked))
    else:
        out.print(f"{revoked.name} revoked", markup=False)


@app.command()
def restore(
    context: typer.Context,
    identity: Identity,
    tenant: Tenant = None,
    output: Output = Format.TABLE,
) -> None:
    """Refuse an identity no longer."""
    with connect(context) as servery:
        name = servery.identities.restore(identity, _resource_name(tenant))
    if output is Format.JSON:
        print_json({"name": name})
    else:
        out.print(f"{name} restored", markup=False)


@app.command("list")
def list_(context: typer.Context, tenant: Tenant = None, output: Output = Format.TABLE) -> None:
    """List the identities that are refused."""
    with connect(context) as servery:
        revoked = list(servery.identities.list_revoked(_resource_name(tenant)))
    if output is Format.JSON:
        print_json([as_dict(one) for one in revoked])
    else:
        print_table(["IDENTITY", "REVOKED"], ((r.name, when(r.revoke_time)) for r in revoked))


def _resource_name(tenant: str | None) -> str | None:
    return f"tenants/{tenant}" if tenant else None

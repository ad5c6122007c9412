"""`servery quotas`: how much tenants, keys and identities may call."""

from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, print_json, print_table
from servery.cli.session import connect
from servery.gateway.v1 import quota_pb2 as pb
from servery.tenants import tenant_name

app = typer.Typer(
    help="Quotas: how much tenants, keys and identities may call.", no_args_is_help=True
)

Owner = Annotated[
    str,
    typer.Argument(
        help="Id of a tenant, or resource name tenants/T/apiKeys/K of a key or"
        " tenants/T/identities/I of an identity."
    ),
]


@app.command("set")
def set_(
    context: typer.Context,
    owner: Owner,
    per_second: Annotated[
        int, typer.Option(min=0, help="Calls a second, by each gateway process; 0: no limit.")
    ] = 0,
    per_day: Annotated[
        int, typer.Option(min=0, help="Calls a day, from midnight in UTC; 0: no limit.")
    ] = 0,
    in_flight: Annotated[
        int,
        typer.Option(min=0, help="Inference at once, by each of its servers; 0: no limit."),
    ] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Replace a quota; what is not given has no limit. In force when this returns."""
    quota = pb.Quota(
        name=tenant_name(owner),
        requests_per_second=per_second,
        requests_per_day=per_day,
        requests_in_flight=in_flight,
    )
    with connect(context) as servery:
        stored = servery.quotas.set(quota)
    _print(pb.GetQuotaResponse(quota=stored), output)


@app.command()
def show(context: typer.Context, owner: Owner, output: Output = Format.TABLE) -> None:
    """Show a quota, and what is used of it today."""
    with connect(context) as servery:
        _print(servery.quotas.get(tenant_name(owner)), output)


def _print(found: pb.GetQuotaResponse, output: Format) -> None:
    if output is Format.JSON:
        print_json(as_dict(found))
        return
    quota = found.quota
    limits = (quota.requests_per_second, quota.requests_in_flight, quota.requests_per_day)
    print_table(
        ["OWNER", "PER SECOND", "IN FLIGHT", "PER DAY", "TODAY"],
        [(quota.name, *(limit or "-" for limit in limits), found.requests_today)],
    )

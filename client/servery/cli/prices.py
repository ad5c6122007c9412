"""`servery prices`: what calls cost."""

from decimal import Decimal
from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, print_json, print_table
from servery.cli.session import connect
from servery.gateway.v1 import billing_pb2 as pb
from servery.tenants import tenant_name

app = typer.Typer(help="Prices: what calls cost.", no_args_is_help=True)

Whose = Annotated[
    str, typer.Argument(help="Tenant id, or `-` for tenants without prices of their own.")
]
_NANOS = 10**9


def to_nanos(text: str) -> int:
    """Parse money, such as `0.05`, to the nearest billionth.

    Raises:
        typer.BadParameter: It is no number that money can be.
    """
    try:
        return int((Decimal(text) * _NANOS).to_integral_value())
    except (ArithmeticError, ValueError):
        raise typer.BadParameter(f"{text!r} is no amount such as 0.05") from None


def money(nanos: int) -> str:
    """Render money as people write it, without zeros at its end."""
    return f"{Decimal(nanos) / _NANOS:f}"


@app.command("set")
def set_(
    context: typer.Context,
    tenant: Whose,
    thousand_requests: Annotated[str, typer.Option(help="For 1,000 calls.")] = "0",
    thousand_rows: Annotated[str, typer.Option(help="For 1,000 rows of inference.")] = "0",
    compute_second: Annotated[str, typer.Option(help="For a second that a model ran.")] = "0",
    gigabyte: Annotated[str, typer.Option(help="For 10^9 bytes sent and received.")] = "0",
    output: Output = Format.TABLE,
) -> None:
    """Replace prices, for calls from now on; what is not given costs nothing."""
    prices = pb.Prices(
        name=tenant_name(tenant),
        thousand_requests_nanos=to_nanos(thousand_requests),
        thousand_rows_nanos=to_nanos(thousand_rows),
        compute_second_nanos=to_nanos(compute_second),
        gigabyte_nanos=to_nanos(gigabyte),
    )
    with connect(context) as servery:
        _print(servery.billing.set_prices(prices), output)


@app.command()
def show(context: typer.Context, tenant: Whose, output: Output = Format.TABLE) -> None:
    """Show the prices that hold for a tenant, and whose they are."""
    with connect(context) as servery:
        _print(servery.billing.prices(tenant_name(tenant)), output)


def _print(prices: pb.Prices, output: Format) -> None:
    if output is Format.JSON:
        print_json(as_dict(prices))
        return
    print_table(
        ["OF", "1000 REQUESTS", "1000 ROWS", "COMPUTE SECOND", "GB"],
        [
            (
                prices.name,
                money(prices.thousand_requests_nanos),
                money(prices.thousand_rows_nanos),
                money(prices.compute_second_nanos),
                money(prices.gigabyte_nanos),
            )
        ],
    )

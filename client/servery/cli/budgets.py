"""`servery budgets`: how much a tenant, a key or an identity may cost in a month."""

from typing import Annotated

import typer

from servery.cli.output import Format, Output, as_dict, out, print_json, print_table, when
from servery.cli.prices import money, to_nanos
from servery.cli.quotas import Owner
from servery.cli.session import connect
from servery.gateway.v1 import billing_pb2 as pb
from servery.tenants import tenant_name

app = typer.Typer(
    help="Budgets: how much a tenant, a key or an identity may cost in a month.",
    no_args_is_help=True,
)


@app.command("set")
def set_(
    context: typer.Context,
    owner: Owner,
    amount: Annotated[str, typer.Option(help="For each month in UTC, such as 100; 0: none.")],
    alert: Annotated[
        list[int] | None, typer.Option(help="Percentage to raise an alert at. Repeat for more.")
    ] = None,
    hard_stop: Annotated[
        bool, typer.Option("--hard-stop", help="Refuse calls when the amount is reached.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Replace a budget."""
    budget = pb.Budget(
        name=tenant_name(owner),
        amount_nanos=to_nanos(amount),
        alert_percents=alert or [],
        hard_stop=hard_stop,
    )
    with connect(context) as servery:
        servery.billing.set_budget(budget)
        _print(servery.billing.budget(budget.name), output)


@app.command()
def show(context: typer.Context, owner: Owner, output: Output = Format.TABLE) -> None:
    """Show a budget, what was spent of it this month, and its alerts."""
    with connect(context) as servery:
        _print(servery.billing.budget(tenant_name(owner)), output)


def _print(found: pb.GetBudgetResponse, output: Format) -> None:
    if output is Format.JSON:
        print_json(as_dict(found))
        return
    budget = found.budget
    percents = " ".join(f"{percent}%" for percent in budget.alert_percents)
    print_table(
        ["OWNER", "AMOUNT", "SPENT", "ALERTS AT", "HARD STOP"],
        [
            (
                budget.name,
                money(budget.amount_nanos) if budget.amount_nanos else "-",
                money(found.spent_nanos),
                percents or "-",
                "yes" if budget.hard_stop else "no",
            )
        ],
    )
    for alert in found.alerts:
        out.print(f"{when(alert.time)}  {alert.percent}% reached")

"""`servery usage`: what was called, by whom, and how much it was."""

import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from servery.cli.output import as_dict, print_json, print_table, when
from servery.cli.prices import money
from servery.cli.session import connect
from servery.gateway.v1 import usage_pb2 as pb
from servery.tenants import tenant_name
from servery.usage import EVERYBODY, dimensions

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M"]


class UsageFormat(StrEnum):
    """How usage is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def usage(
    context: typer.Context,
    by: Annotated[
        list[str] | None,
        typer.Option(help=f"What to tell apart: {', '.join(dimensions())}. Repeat for more."),
    ] = None,
    start: Annotated[
        datetime | None,
        typer.Option(formats=_TIMES, help="From when, in UTC; default: the first of this month."),
    ] = None,
    end: Annotated[
        datetime | None, typer.Option(formats=_TIMES, help="Until when, in UTC; default: now.")
    ] = None,
    every_minutes: Annotated[
        int | None, typer.Option(min=1, help="Length of a time bucket; default: one bucket.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Tenant id; `-` means all; default: your own.")
    ] = None,
    output: Annotated[
        UsageFormat, typer.Option("--output", "-o", help="How to print the result.")
    ] = UsageFormat.TABLE,
) -> None:
    """Show what was called and how much it was; a call is there two seconds after its end."""
    now = datetime.now(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    times = (
        start.replace(tzinfo=UTC) if start else month,
        end.replace(tzinfo=UTC) if end else now + timedelta(minutes=1),
    )
    group_by = by or []
    interval = timedelta(minutes=every_minutes) if every_minutes else None
    parent = EVERYBODY if tenant == "-" else tenant_name(tenant) if tenant else None
    with connect(context) as servery:
        if output is UsageFormat.CSV:
            for chunk in servery.usage.export(
                *times, group_by=group_by, interval=interval, tenant=parent
            ):
                sys.stdout.buffer.write(chunk)
            return
        rows = servery.usage.query(*times, group_by=group_by, interval=interval, tenant=parent)
    if output is UsageFormat.JSON:
        print_json([as_dict(row) for row in rows])
    else:
        sums = ["REQUESTS", "ROWS", "BYTES IN", "BYTES OUT", "SECONDS", "COMPUTE SECONDS", "COST"]
        print_table(
            ["FROM", *(name.upper() for name in group_by), *sums],
            (_line(row, group_by) for row in rows),
        )


def _line(row: pb.UsageRow, group_by: list[str]) -> list[object]:
    return [
        when(row.start_time),
        *(getattr(row, name) for name in group_by),
        row.requests,
        row.rows,
        row.request_bytes,
        row.response_bytes,
        f"{row.duration.ToMicroseconds() / 1e6:.3f}",
        f"{row.compute_time.ToNanoseconds() / 1e9:.3f}",
        money(row.cost_nanos),
    ]

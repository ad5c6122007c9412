"""servery.gateway.v1.UsageService: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from servery.gateway.v1 import usage_pb2 as pb
from servery.gateway.v1 import usage_pb2_grpc as pb_grpc
from servery_gateway.store import Store
from servery_gateway.usage import DIMENSIONS, Dimension, Query, Row, parse_query
from servery_gateway.usage_store import UsageStore
from servery_rpc.errors import FieldInvalidError
from servery_rpc.identity import caller_of
from servery_rpc.names import DEFAULT_TENANT, TenantName

Context = grpc.aio.ServicerContext

_ALL: Final = "tenants/-"
_MAX_ROWS: Final = 10_000
_MAX_EXPORTED_ROWS: Final = 1_000_000
_CHUNK_ROWS: Final = 2_000
_SUMS: Final = (
    *("requests", "request_bytes", "response_bytes", "duration_s"),
    *("rows", "compute_s", "cost"),
)
"""Columns of a CSV file behind those of the dimensions."""

_DIMENSIONS: Final[dict[int, Dimension]] = {
    pb.UsageDimension.Value(f"USAGE_DIMENSION_{name.upper()}"): name for name in DIMENSIONS
}


class UsageServicer(pb_grpc.UsageServiceServicer):
    """Tells what was used."""

    def __init__(self, store: Store, usage: UsageStore) -> None:
        self._store = store
        self._usage = usage

    async def QueryUsage(
        self, request: pb.QueryUsageRequest, context: Context[Any, Any]
    ) -> pb.QueryUsageResponse:
        """See usage.proto."""
        rows = await self._rows(request.query, context, _MAX_ROWS)
        return pb.QueryUsageResponse(rows=[_row(row) for row in rows])

    async def ExportUsage(
        self, request: pb.ExportUsageRequest, context: Context[Any, Any]
    ) -> AsyncIterator[pb.ExportUsageResponse]:
        """See usage.proto."""
        rows = await self._rows(request.query, context, _MAX_EXPORTED_ROWS)
        group_by = [_DIMENSIONS[dimension] for dimension in request.query.group_by]
        yield pb.ExportUsageResponse(chunk=_csv([["start_time", *group_by, *_SUMS]]))
        for first in range(0, len(rows), _CHUNK_ROWS):
            lines = [_line(row) for row in rows[first : first + _CHUNK_ROWS]]
            yield pb.ExportUsageResponse(chunk=_csv(lines))

    async def _rows(
        self, request: pb.UsageQuery, context: Context[Any, Any], limit: int
    ) -> list[Row]:
        tenant = None
        if request.parent != _ALL:
            tenant = TenantName.parse(request.parent, "query.parent")
        caller_of(context).require("admin", tenant.tenant if tenant else DEFAULT_TENANT)
        query = _query(request, tenant)
        if tenant is not None:
            await asyncio.to_thread(self._store.tenant, tenant)
        rows = await asyncio.to_thread(self._usage.query, query, limit + 1)
        if len(rows) > limit:
            raise FieldInvalidError(
                "query", f"more than {limit} rows", "ask for a shorter time or fewer dimensions"
            )
        return rows


def _query(request: pb.UsageQuery, tenant: TenantName | None) -> Query:
    dimensions: list[Dimension] = []
    for index, number in enumerate(request.group_by):
        if number not in _DIMENSIONS:
            raise FieldInvalidError(
                f"query.group_by[{index}]", number, f"be one of {', '.join(DIMENSIONS)}"
            )
        dimensions.append(_DIMENSIONS[number])
    return parse_query(
        tenant=None if tenant is None else str(tenant),
        start=_time(request, "start_time"),
        end=_time(request, "end_time"),
        interval=_interval(request),
        group_by=tuple(dimensions),
    )


def _time(request: pb.UsageQuery, field: str) -> datetime:
    timestamp: Timestamp = getattr(request, field)
    if not request.HasField(field):  # type: ignore[arg-type]
        raise FieldInvalidError(f"query.{field}", "unset", "be set")
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise FieldInvalidError(
            f"query.{field}", timestamp.seconds, "be a time in the years 1 to 9999"
        ) from None


def _interval(request: pb.UsageQuery) -> timedelta | None:
    if not request.HasField("interval"):
        return None
    try:
        return request.interval.ToTimedelta()
    except (ValueError, OverflowError):
        raise FieldInvalidError(
            "query.interval", request.interval.seconds, "be a duration"
        ) from None


def _row(row: Row) -> pb.UsageRow:
    duration, compute_time = Duration(), Duration()
    duration.FromMicroseconds(row.sums.duration_us)
    compute_time.FromNanoseconds(row.sums.compute_ns)
    message = pb.UsageRow(
        start_time=Timestamp(seconds=row.start_minute * 60),
        requests=row.sums.requests,
        request_bytes=row.sums.request_bytes,
        response_bytes=row.sums.response_bytes,
        duration=duration,
        rows=row.sums.rows,
        compute_time=compute_time,
        cost_nanos=row.sums.cost_nanos,
    )
    for dimension, value in row.group.items():
        setattr(message, dimension, value)
    return message


def _line(row: Row) -> list[str | int]:
    start = datetime.fromtimestamp(row.start_minute * 60, UTC)
    return [
        start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        *row.group.values(),
        row.sums.requests,
        row.sums.request_bytes,
        row.sums.response_bytes,
        f"{row.sums.duration_us / 1e6:.6f}",
        row.sums.rows,
        f"{row.sums.compute_ns / 1e9:.9f}",
        f"{Decimal(row.sums.cost_nanos).scaleb(-9):.9f}",
    ]


def _csv(lines: Iterable[Sequence[str | int]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()

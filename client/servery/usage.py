"""Usage: what was called, by whom, and how much it was."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from servery.connection import Connection
from servery.gateway.v1 import usage_pb2 as pb
from servery.gateway.v1 import usage_pb2_grpc as pb_grpc

EVERYBODY = "tenants/-"
"""The parent of a query over all tenants, for administrators of `tenants/default`."""


def dimension_name(dimension: "pb.UsageDimension.ValueType") -> str:
    """Return a dimension as people write it, such as `model`."""
    return pb.UsageDimension.Name(dimension).removeprefix("USAGE_DIMENSION_").lower()


def dimensions() -> list[str]:
    """Return the names of every dimension that sums can be told apart by."""
    return [dimension_name(dimension) for dimension in pb.UsageDimension.values() if dimension]


class Usage:
    """The usage of a tenant, by default the caller's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.UsageServiceStub(connection.channel)

    def query(
        self,
        start: datetime,
        end: datetime,
        *,
        group_by: Sequence[str] = (),
        interval: timedelta | None = None,
        tenant: str | None = None,
    ) -> Sequence[pb.UsageRow]:
        """Sum up what was used, by time and then by group.

        Args:
            start: From the beginning of its minute. With a time zone.
            end: Up to the beginning of its minute. With a time zone.
            group_by: What to tell apart, of `dimensions()`; empty means one sum.
            interval: Length of a time bucket, whole minutes; None means one bucket.
            tenant: Resource name, or `EVERYBODY`; None means the caller's own.

        Raises:
            ValueError: A dimension is unknown.
        """
        request = pb.QueryUsageRequest(query=self._query(start, end, group_by, interval, tenant))
        return self._connection.unary(self._stub.QueryUsage, request).rows

    def export(
        self,
        start: datetime,
        end: datetime,
        *,
        group_by: Sequence[str] = (),
        interval: timedelta | None = None,
        tenant: str | None = None,
    ) -> Iterator[bytes]:
        """Yield the same sums as a CSV file, in pieces; see `query`."""
        request = pb.ExportUsageRequest(query=self._query(start, end, group_by, interval, tenant))
        for piece in self._connection.stream(self._stub.ExportUsage, request):
            yield piece.chunk

    def _query(
        self,
        start: datetime,
        end: datetime,
        group_by: Sequence[str],
        interval: timedelta | None,
        tenant: str | None,
    ) -> pb.UsageQuery:
        query = pb.UsageQuery(
            parent=tenant or self._connection.tenant,
            group_by=[_dimension(name) for name in group_by],
        )
        query.start_time.FromDatetime(start)
        query.end_time.FromDatetime(end)
        if interval is not None:
            query.interval.FromTimedelta(interval)
        return query


def _dimension(name: str) -> "pb.UsageDimension.ValueType":
    try:
        return pb.UsageDimension.Value(f"USAGE_DIMENSION_{name.upper()}")
    except ValueError:
        known = ", ".join(dimensions())
        raise ValueError(f"{name!r} is no dimension of usage; use one of {known}") from None

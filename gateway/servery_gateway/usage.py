"""Usage: what a call was, and how calls are summed up. Pure: no clock, no database."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Final, Literal, get_args

from servery_rpc.errors import FieldInvalidError

Dimension = Literal["tenant", "api_key", "model", "code", "version"]
DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)

MINUTES_A_DAY: Final = 24 * 60

_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """How much some calls were together."""

    requests: int
    request_bytes: int
    response_bytes: int
    duration_us: int

    rows: int = 0
    """Of inference."""

    compute_ns: int = 0
    """How long models ran."""

    cost_nanos: int = 0
    """What the calls cost, in billionths."""

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in AMOUNTS})


AMOUNTS: Final = tuple(field.name for field in fields(Sums))
"""The names of all sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What the usage of a minute is told apart by."""

    minute: int
    """In which the calls began, counted from 1970 in UTC."""

    tenant: str
    """`tenants/{tenant}`."""

    api_key: str
    """`tenants/{tenant}/apiKeys/{key}`."""

    model: str
    """`tenants/{tenant}/models/{model}`; empty: none, or one that never answered."""

    code: int
    """The `google.rpc.Code` that the caller got."""

    version: int = 0
    """Of the model that answered; 0: none, or several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that ended."""

    id: bytes
    """No other call has it."""

    bill: Bill
    """Its `tenant` and `api_key` are empty if the caller showed no valid token."""

    reached_server: bool
    """Whether it was passed on, so that it counts against a daily quota."""

    model_answered: bool
    """Whether it shows that the model exists."""

    sums: Sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to sum up, and how."""

    tenant: str | None
    """`tenants/{tenant}`; None: all."""

    start_minute: int
    end_minute: int
    """The first one that does not count."""

    bucket_minutes: int | None
    """None: one bucket."""

    group_by: tuple[Dimension, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sum of a query."""

    start_minute: int

    group: Mapping[Dimension, str | int]
    """The value of each dimension that was asked for."""

    sums: Sums


def known_only(call: Call, answered: Set[str]) -> Call:
    """Return the call without the name of a model that never answered.

    Such a name is the caller's invention: keeping it would let callers fill the database and the
    metrics with series.
    """
    if call.bill.model in answered:
        return call
    return replace(call, bill=replace(call.bill, model=""))


def parse_query(
    tenant: str | None,
    start: datetime,
    end: datetime,
    interval: timedelta | None,
    group_by: tuple[Dimension, ...],
) -> Query:
    """Parse what is asked for.

    Raises:
        FieldInvalidError: The range is empty, the interval is not in whole minutes, or a dimension
            comes twice.
    """
    start_minute, end_minute = minute_of(start), minute_of(end)
    if start_minute >= end_minute:
        raise FieldInvalidError(
            "query.end_time", end.isoformat(), "be in a later minute than start_time"
        )
    if interval is not None and (interval < _MINUTE or interval % _MINUTE):
        raise FieldInvalidError(
            "query.interval", f"{interval.total_seconds()} s", "be whole minutes, at least one"
        )
    if len(set(group_by)) != len(group_by):
        raise FieldInvalidError("query.group_by", group_by, "name each dimension at most once")
    return Query(
        tenant=tenant,
        start_minute=start_minute,
        end_minute=end_minute,
        bucket_minutes=None if interval is None else interval // _MINUTE,
        group_by=group_by,
    )


def minute_of(time: datetime) -> int:
    """Return the minute that holds `time`, counted from 1970 in UTC."""
    return int(time.timestamp() // 60)


def day_of(time: datetime) -> int:
    """Return the day that holds `time`, counted from 1970 in UTC."""
    return minute_of(time) // MINUTES_A_DAY

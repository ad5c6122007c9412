"""Values to messages and back: the wire form of tenants, keys and permissions."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from servery.gateway.v1 import gateway_pb2 as pb
from servery_gateway.keys import VERBS, ApiKey, Permission, parse_permissions
from servery_gateway.tenants import Tenant
from servery_rpc.errors import FieldInvalidError
from servery_rpc.identity import Verb

_VERBS: Final[dict[int, Verb]] = {pb.Verb.Value(f"VERB_{verb.upper()}"): verb for verb in VERBS}


def tenant_to_proto(tenant: Tenant) -> pb.Tenant:
    """Render a tenant."""
    return pb.Tenant(
        name=str(tenant.name),
        display_name=tenant.display_name,
        create_time=timestamp(tenant.create_time),
    )


def key_to_proto(key: ApiKey) -> pb.ApiKey:
    """Render a key, which has no secret."""
    return pb.ApiKey(
        name=str(key.name),
        display_name=key.display_name,
        permissions=permissions_to_proto(key.permissions),
        create_time=timestamp(key.create_time),
        expire_time=timestamp(key.expire_time) if key.expire_time else None,
        revoke_time=timestamp(key.revoke_time) if key.revoke_time else None,
        last_use_time=timestamp(key.last_use_time) if key.last_use_time else None,
    )


def permissions_to_proto(permissions: Iterable[Permission]) -> list[pb.Permission]:
    """Render permissions."""
    return [
        pb.Permission(verb=pb.Verb.Value(f"VERB_{p.verb.upper()}"), models=p.models)
        for p in permissions
    ]


def permissions_from_proto(
    permissions: Iterable[pb.Permission], field: str
) -> tuple[Permission, ...]:
    """Parse permissions.

    Raises:
        FieldInvalidError: See `parse_permissions`.
    """
    return parse_permissions([(_VERBS.get(p.verb), p.models) for p in permissions], field)


def expire_time_from_proto(key: pb.ApiKey, field: str) -> datetime | None:
    """Parse when a key asked for shall expire; None means never.

    Raises:
        FieldInvalidError: It is no time of this calendar.
    """
    if not key.HasField("expire_time"):
        return None
    try:
        return key.expire_time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise FieldInvalidError(
            field, key.expire_time.seconds, "be a time in the years 1 to 9999"
        ) from None


def valid_for_from_proto(message: pb.ExchangeApiKeyRequest, field: str) -> timedelta | None:
    """Read how long a token shall be valid; None if that is unset.

    Raises:
        FieldInvalidError: It is no duration.
    """
    if not message.HasField("valid_for"):
        return None
    try:
        return message.valid_for.ToTimedelta()
    except (ValueError, OverflowError):
        raise FieldInvalidError(field, message.valid_for.seconds, "be a duration") from None


def timestamp(time: datetime) -> Timestamp:
    """Render a time."""
    rendered = Timestamp()
    rendered.FromDatetime(time)
    return rendered

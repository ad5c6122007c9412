"""Tenants: the owners of models, data and keys."""

from dataclasses import dataclass
from datetime import datetime

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import FieldInvalidError, ServeryError
from servery_rpc.names import TenantName

_MAX_DISPLAY_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An owner of models, data and keys."""

    name: TenantName

    display_name: str
    """For people; at most 200 characters."""

    create_time: datetime


class TenantNotFoundError(ServeryError):
    """No tenant has this name."""

    reason = reasons.ERROR_REASON_TENANT_NOT_FOUND

    def __init__(self, name: TenantName) -> None:
        super().__init__(f"there is no tenant {name}", name=str(name))


class TenantExistsError(ServeryError):
    """The name is taken."""

    reason = reasons.ERROR_REASON_TENANT_EXISTS

    def __init__(self, name: TenantName) -> None:
        super().__init__(f"{name} exists already; choose another name", name=str(name))


def parse_display_name(text: str, field: str) -> str:
    """Return `text` if it can be a display name.

    Raises:
        FieldInvalidError: It is too long.
    """
    if len(text) > _MAX_DISPLAY_NAME:
        raise FieldInvalidError(field, text, f"have at most {_MAX_DISPLAY_NAME} characters")
    return text

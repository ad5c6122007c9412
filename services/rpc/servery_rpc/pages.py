"""Pagination: opaque tokens that continue one listing and no other."""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Final

from servery_rpc.errors import FieldInvalidError

_DEFAULT_SIZE: Final = 100
_MAX_SIZE: Final = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """What one call of a List method asks for."""

    size: int
    """Largest number of items, from 1 to 1000."""

    after: str | None
    """The key of the last item of the page before; None for the first page."""


def parse_page(page_size: int, page_token: str, listing: str) -> Page:
    """Read the paging fields of a request.

    Args:
        page_size: 0 to 1000; 0 means 100.
        page_token: Empty, or what `page_token` returned.
        listing: What is listed (the parent, the filter): a token of another listing is refused.

    Raises:
        FieldInvalidError: A field is out of its range or the token is not of this listing.
    """
    if not 0 <= page_size <= _MAX_SIZE:
        raise FieldInvalidError("page_size", page_size, f"be 0 to {_MAX_SIZE}")
    size = page_size or _DEFAULT_SIZE
    if not page_token:
        return Page(size, None)
    try:
        of, after = json.loads(base64.urlsafe_b64decode(page_token))
    except (ValueError, TypeError, binascii.Error):
        of = after = None
    if of != listing or not isinstance(after, str):
        raise FieldInvalidError(
            "page_token", page_token, "be the next_page_token of a call with the same arguments"
        )
    return Page(size, after)


def page_token(listing: str, after: str) -> str:
    """Return the token that continues `listing` behind the item whose key is `after`."""
    return base64.urlsafe_b64encode(json.dumps([listing, after]).encode()).decode()

"""The version of a model as requests write it."""

import re
from typing import Final

from servery_inference.request import InferenceRequestInvalidError, shown

_LEADING_INTEGER: Final = re.compile(r"\s*([+-]?[0-9]+)", re.ASCII)
_MAX_DIGITS: Final = 20
_MAX_VERSION: Final = (1 << 63) - 1


def parse_version(text: str, model: str) -> int | None:
    """Read the version of a request as clients of the protocol expect: leading digits count.

    Returns:
        A number from 1 up; None if `text` is empty.

    Raises:
        InferenceRequestInvalidError: `text` does not begin with an integer above 0.
    """
    if not text:
        return None
    match = _LEADING_INTEGER.match(text)
    number = int(match[1]) if match and len(match[1]) <= _MAX_DIGITS else None
    details = "" if number is not None and number <= 0 else " (details: stol)"
    if number is None or not 0 < number <= _MAX_VERSION:
        raise InferenceRequestInvalidError(
            f"failed to get model version from specified version string '{shown(text)}'{details},"
            " version should be an integral value > 0",
            model,
        )
    return number

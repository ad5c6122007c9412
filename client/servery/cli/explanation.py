"""What an explanation says of one row: which values weigh most, and what else it tells.

Knows the names of outputs that graphs of Servery's trainer have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ATTRIBUTION: Final = "attribution."
"""What the name of the output about an input starts with."""

_FACT: Final = "explained."
_WORDS: Final = "explained.words"
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Share:
    """What one value adds to the answer."""

    input: str
    """Its input, with its place where there are several: `image[3,14,0]`."""

    value: Any
    attribution: float


def largest(
    inputs: Mapping[str, Any],
    told: Mapping[str, NDArray[Any]],
    row: int,
    count: int = _SHOWN,
) -> tuple[list[Share], list[float]]:
    """Return the `count` values of a row that weigh most, either way, and what all others add.

    Args:
        inputs: What was sent, by name.
        told: The explanation, by name of output.
        row: From 0 up.
        count: How many.
    """
    shares = sorted(_shares(inputs, told, row), key=lambda share: -abs(share.attribution))
    return shares[:count], [share.attribution for share in shares[count:]]


def facts(told: Mapping[str, NDArray[Any]], row: int) -> dict[str, Any]:
    """Return what else an explanation tells of a row, where that is one value."""
    return {
        name.removeprefix(_FACT): values[row]
        for name, values in told.items()
        if not name.startswith(ATTRIBUTION) and values[row].size == 1
    }


def _shares(
    inputs: Mapping[str, Any], told: Mapping[str, NDArray[Any]], row: int
) -> Iterator[Share]:
    for output, attributions in told.items():
        if not output.startswith(ATTRIBUTION):
            continue
        name, own = output.removeprefix(ATTRIBUTION), attributions[row]
        words = told.get(_WORDS)
        if words is not None and words.shape == attributions.shape:
            for word, share in zip(words[row], own, strict=True):
                if word:  # Behind the last one there are empty ones.
                    yield Share(name, word, float(share))
            continue
        given = np.asarray(inputs.get(name, [""] * len(attributions)), object)[row]
        if own.size == 1:
            yield Share(name, given, float(own.item()))
            continue
        fits = np.size(given) == own.size  # Grey images may come without their channel.
        values = np.reshape(given, own.shape) if fits else np.full(own.shape, "")
        for place, share in np.ndenumerate(own):
            yield Share(f"{name}[{','.join(map(str, place))}]", values[place], float(share))

"""Several requests as one run: which may share it, and how their tensors are joined and parted."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort

from servery_inference.queueing import Work
from servery_inference.rate_limit import Instance
from servery_inference.request import Array


class NotRowWiseError(Exception):
    """An output does not have one row for each row of the inputs, so it cannot be parted."""


@dataclass(slots=True, eq=False)
class Batch:
    """Works that run together."""

    works: Sequence[Work]
    names: Sequence[str]
    """Every output that one of them wants, in the order of the model."""

    rows: int
    size: int
    options: ort.RunOptions = field(default_factory=ort.RunOptions)
    live: int = 0
    """Works whose caller still waits."""

    instance: Instance | None = None
    """What it runs on where a rate limiter decides."""


def kind_of(feed: Mapping[str, Array]) -> Hashable:
    """Return what must be equal for inputs to be joined: which they are, and their row shapes."""
    return frozenset([(name, array.shape[1:]) for name, array in feed.items()])


def join(feeds: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    """Put the rows of several requests of one kind below each other; one alone is not copied."""
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def part(values: Sequence[Array], rows: Sequence[int]) -> list[list[Array]]:
    """Cut outputs into those of each request, as views.

    Raises:
        NotRowWiseError: The outputs do not have as many rows as the requests together.
    """
    if len(rows) == 1:
        return [list(values)]
    total = sum(rows)
    if any(not value.ndim or len(value) != total for value in values):
        raise NotRowWiseError
    parts: list[list[Array]] = []
    at = 0
    for count in rows:
        parts.append([value[at : at + count] for value in values])
        at += count
    return parts

"""Answers kept in memory for requests that come again. Bounded by bytes, over all models."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from servery_inference.request import Array, Terms, Timing
from servery_inference.runner import Result, Runner
from servery_inference.statistics import ModelStatistics

_DIGEST_BYTES: Final = 16
_INLINE_BYTES: Final = 1 << 20
_BYTES_OF_TEXT: Final = 80
"""What a text takes besides its characters."""

Key = tuple[object, bytes]


class ResponseCache:
    """The answers used last. For one event loop.

    Args:
        max_bytes: Of all answers together; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[Key, tuple[Sequence[Array], int]] = OrderedDict()

    def get(self, key: Key) -> Sequence[Array] | None:
        """Return the answer to a request, if it is still here."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, values: Sequence[Array]) -> None:
        """Keep an answer, in the place of those that were not used for longest."""
        size = sum(_num_bytes(value) for value in values)
        if key in self._entries or size > self.max_bytes:
            return
        # A view would keep the whole batch.
        owned = [value if value.base is None else value.copy() for value in values]
        self._entries[key] = owned, size
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            _, (_, dropped) = self._entries.popitem(last=False)
            self.num_bytes -= dropped

    def drop(self, owner: object) -> None:
        """Forget the answers of one loaded version."""
        for key in [key for key in self._entries if key[0] is owner]:
            self.num_bytes -= self._entries.pop(key)[1]


class CachedRunner:
    """Answers from the cache, or else lets another runner do it.

    Args:
        cache: Shared with others.
        runner: Runs what is not in the cache.
        statistics: Gets hits and misses; also what tells this version from all others.
        graph: What tells the graph that is run from others of the version.
    """

    def __init__(
        self, cache: ResponseCache, runner: Runner, statistics: ModelStatistics, graph: str
    ) -> None:
        self._cache = cache
        self._runner = runner
        self._statistics = statistics
        self._graph = graph

    async def run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        terms: Terms,
        deadline: float | None,
    ) -> Result:
        """Answer one request; see `Runner.run`."""
        start = time.perf_counter_ns()
        if sum(array.nbytes for array in feed.values()) <= _INLINE_BYTES:
            digest = digest_of(feed, (self._graph, *names))
        else:
            digest = await asyncio.to_thread(digest_of, feed, (self._graph, *names))
        key = self._statistics, digest
        values = self._cache.get(key)
        looked_up_ns = time.perf_counter_ns() - start
        if values is not None:
            self._statistics.record_cache_hit(looked_up_ns)
            return Result(values, Timing(0, 0, 0, 0), is_cached=True)
        result = await self._runner.run(feed, names, rows, size, terms, deadline)
        start = time.perf_counter_ns()
        self._cache.put(key, result.values)
        self._statistics.record_cache_miss(looked_up_ns + time.perf_counter_ns() - start)
        return result


def digest_of(feed: Mapping[str, Array], names: Sequence[str]) -> bytes:
    """Return a digest that is equal only for equal inputs and wanted outputs."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in names:
        _add(digest, name.encode())
    for name, array in sorted(feed.items()):
        _add(digest, name.encode())
        digest.update(np.array([array.ndim, *array.shape], np.int64).tobytes())
        if array.dtype.kind == "O":
            for text in array.flat:
                _add(digest, text.encode())
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def _add(digest: "hashlib.blake2b", part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _num_bytes(value: Array) -> int:
    if value.dtype.kind != "O":
        return value.nbytes
    return sum(_BYTES_OF_TEXT + 4 * len(text) for text in value.flat)

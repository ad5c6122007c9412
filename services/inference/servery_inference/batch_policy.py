"""How a model wants its requests batched and queued, read from its config."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.queueing import QueuePolicy
from servery_inference.request import Terms

_US: Final = 1e-6
_MAX_LEVELS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What a batcher decides by. The defaults run every request on its own."""

    max_rows: int = 1
    """Most rows of a batch; 1 joins nothing."""

    preferred: frozenset[int] = frozenset()
    """Numbers of rows at which a batch need not wait for more."""

    delay_s: float = 0.0
    """Longest wait for a preferred size."""

    is_ordered: bool = False
    """Whether answers come in the order of the requests."""

    levels: tuple[QueuePolicy, ...] = (QueuePolicy(),)
    """Of priority 1, 2, …"""

    default_level: int = 1

    @classmethod
    def of(cls, config: pb.ModelConfig) -> Self:
        """Read a config that is complete."""
        if config.HasField("sequence_batching"):
            return cls._of_sequences(config.sequence_batching, config.max_batch_size)
        if not config.HasField("dynamic_batching"):
            return cls()
        batching = config.dynamic_batching
        count = min(max(batching.priority_levels, 1), _MAX_LEVELS)
        default = QueuePolicy.of(batching.default_queue_policy)
        own = batching.priority_queue_policy
        levels = [
            QueuePolicy.of(own[level]) if level in own else default for level in range(1, count + 1)
        ]
        return cls(
            max_rows=max(config.max_batch_size, 1),
            preferred=_preferred(batching.preferred_batch_size, config.max_batch_size),
            delay_s=batching.max_queue_delay_microseconds * _US,
            is_ordered=batching.preserve_ordering,
            levels=tuple(levels),
            default_level=min(max(batching.default_priority_level, 1), count),
        )

    @classmethod
    def _of_sequences(cls, batching: pb.ModelSequenceBatching, max_batch_size: int) -> Self:
        oldest = batching.oldest
        direct = batching.direct
        delay_us = max(oldest.max_queue_delay_microseconds, direct.max_queue_delay_microseconds)
        return cls(
            max_rows=max(max_batch_size, 1),
            preferred=_preferred(oldest.preferred_batch_size, max_batch_size),
            delay_s=delay_us * _US,
            is_ordered=oldest.preserve_ordering,
        )

    def level(self, terms: Terms) -> int:
        """Return the level of a request; one that does not exist means the default."""
        return terms.priority if 0 < terms.priority <= len(self.levels) else self.default_level


def _preferred(sizes: Iterable[int], max_batch_size: int) -> frozenset[int]:
    return frozenset(sizes) | {max_batch_size}

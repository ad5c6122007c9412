"""How a model wants its requests batched and queued, read from its config."""

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Final, Self

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.engine import LoadFailedError
from servery_inference.queueing import QueuePolicy
from servery_inference.request import Terms

_US: Final = 1e-6
_MAX_LEVELS: Final = 1 << 16
_ROUNDING: Final = 1e-3  # Shares are 32-bit floats: 0.7 of 10 rows is a little above 7.


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What a batcher decides by. The defaults run every request on its own."""

    max_rows: int = 1
    """Most rows of a batch; 1 joins nothing."""

    preferred: Container[int] = frozenset()
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
        """Read a config that is complete.

        Raises:
            LoadFailedError: A size, share or priority is out of its range.
        """
        if config.HasField("sequence_batching"):
            return cls._of_sequences(config.sequence_batching, max(config.max_batch_size, 1))
        if not config.HasField("dynamic_batching"):
            return cls()
        batching = config.dynamic_batching
        count, own = batching.priority_levels, batching.priority_queue_policy
        if count > _MAX_LEVELS or (count and not 1 <= batching.default_priority_level <= count):
            raise LoadFailedError(
                f"dynamic_batching has {count} priority_levels, of which default_priority_level is"
                f" {batching.default_priority_level}; there may be {_MAX_LEVELS}, and it must be"
                " one of them"
            )
        if count and not all(1 <= level <= count for level in own):
            raise LoadFailedError(
                f"priority_queue_policy is for levels from 1 to the {count} priority_levels"
            )
        default = QueuePolicy.of(batching.default_queue_policy)
        levels = [
            QueuePolicy.of(own[level]) if level in own else default
            for level in range(1, max(count, 1) + 1)
        ]
        return cls(
            max_rows=max(config.max_batch_size, 1),
            preferred=_preferred(batching.preferred_batch_size, max(config.max_batch_size, 1)),
            delay_s=batching.max_queue_delay_microseconds * _US,
            is_ordered=batching.preserve_ordering,
            levels=tuple(levels),
            default_level=batching.default_priority_level or 1,
        )

    @classmethod
    def _of_sequences(cls, batching: pb.ModelSequenceBatching, max_rows: int) -> Self:
        if batching.HasField("oldest"):
            oldest = batching.oldest
            return cls(
                max_rows=max_rows,
                preferred=_preferred(oldest.preferred_batch_size, max_rows),
                delay_s=oldest.max_queue_delay_microseconds * _US,
                is_ordered=oldest.preserve_ordering,
            )
        share = batching.direct.minimum_slot_utilization
        if not 0 <= share <= 1:
            raise LoadFailedError(f"minimum_slot_utilization is {share}; it must be 0 to 1")
        enough = max(math.ceil(share * max_rows - _ROUNDING), 1)
        # Any row is enough without a share: then there is nothing to wait for.
        delay_s = batching.direct.max_queue_delay_microseconds * _US if share else 0.0
        return cls(max_rows=max_rows, preferred=range(enough, max_rows + 1), delay_s=delay_s)

    def level(self, terms: Terms) -> int:
        """Return the level of a request; one that does not exist means the default."""
        return terms.priority if 0 < terms.priority <= len(self.levels) else self.default_level


def _preferred(sizes: Iterable[int], max_rows: int) -> frozenset[int]:
    if wrong := [size for size in sizes if not 1 <= size <= max_rows]:
        raise LoadFailedError(
            f"preferred_batch_size is {wrong[0]}; it must be 1 to max_batch_size, {max_rows}"
        )
    return frozenset(sizes) | {max_rows}

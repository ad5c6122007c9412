"""Bytes like those of a corpus, for fuzzing without an engine of its own."""

import random
from collections.abc import Iterator, Sequence

_MOST_CHANGES = 3


def mutations(seeds: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    """Yield seeds with bytes flipped, cut out, doubled, and crossed with others; without end."""
    while True:
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(0, _MOST_CHANGES)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    data[at : at + 1] = bytes([rng.randrange(256)])
                case 1:
                    del data[at : at + rng.randint(1, 8)]
                case 2:
                    data[at:at] = data[at : at + rng.randint(1, 40)]
                case _:
                    other = rng.choice(seeds)
                    data[at:] = other[rng.randrange(len(other) + 1) :]
        yield bytes(data)

"""Parts of networks, with the first weights that Keras would draw.

Shape suffixes: B rows.
"""

from math import sqrt
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from servery_trainer.networks import Transformer

_FAR: Final = -1e9
"""The score of what shall not be seen; finite, for rows that see nothing."""

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv1d, nn.Conv2d)


def dense(width: int, units: int) -> nn.Linear:
    """Return a layer [..., width] to [..., units]."""
    return _from_zero(nn.Linear(width, units))


def convolution(sides: int, depth: int, filters: int) -> nn.Module:
    """Return a layer that looks at each place and its neighbours, channels first."""
    if sides == 2:
        return _from_zero(nn.Conv2d(depth, filters, 3, padding="same"))
    return _from_zero(nn.Conv1d(depth, filters, 3, padding="same"))


def embedding(rows: int, dimension: int) -> nn.Embedding:
    """Return a vector for each of `rows` numbers."""
    table = nn.Embedding(rows, dimension)
    nn.init.uniform_(table.weight, -0.05, 0.05)
    return table


def normalization(width: int) -> nn.LayerNorm:
    """Return a layer that gives each step mean 0 and variance 1 to start with."""
    return nn.LayerNorm(width, eps=1e-6)


def mean(steps_B: Tensor, there_B: Tensor | None) -> Tensor:
    """Return the mean over the steps that are there, None for all; 0 if there are none."""
    if there_B is None:
        return steps_B.mean(dim=1)
    weights = there_B.to(steps_B.dtype)[:, :, None]
    return (steps_B * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class ChannelsFirst(nn.Module):
    """From [B, ..., channel], as features are, to [B, channel, ...]."""

    def forward(self, features: Tensor) -> Tensor:
        """Move the channels."""
        return features.movedim(-1, 1)


class Block(nn.Module):
    """Self-attention, then two dense layers, each added to what came in."""

    def __init__(self, family: Transformer) -> None:
        super().__init__()
        width, units = family.dimension, family.feed_forward_units
        self.heads = family.heads
        self.before_attention = normalization(width)
        self.query, self.key, self.value, self.out = (dense(width, width) for _ in range(4))
        self.before_dense = normalization(width)
        self.dense = nn.Sequential(dense(width, units), nn.GELU(), dense(units, width))
        self.dropout = nn.Dropout(family.dropout)

    def forward(self, steps_B: Tensor, there_B: Tensor | None) -> Tensor:
        """Return what becomes of the steps when each sees those that are there; None: all."""
        hidden = steps_B + self.dropout(self._attend(self.before_attention(steps_B), there_B))
        return hidden + self.dropout(self.dense(self.before_dense(hidden)))

    def _attend(self, steps_B: Tensor, there_B: Tensor | None) -> Tensor:
        """Vaswani et al. (2017), section 3.2."""

        def split(steps: Tensor) -> Tensor:
            return steps.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, H, T, D / H]

        query, key, value = (split(part(steps_B)) for part in (self.query, self.key, self.value))
        scores_B = query @ key.transpose(2, 3) / sqrt(query.shape[-1])
        if there_B is not None:
            scores_B = scores_B.masked_fill(~there_B[:, None, None, :], _FAR)
        seen = torch.softmax(scores_B, dim=-1) @ value
        return self.out(seen.transpose(1, 2).flatten(2))


def _from_zero(layer: _Layer) -> _Layer:
    """Glorot and Bengio (2010): weights of a variance that keeps that of signals; biases of 0."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

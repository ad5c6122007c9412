"""The networks a job can train, in PyTorch.

Each is the network of the same name in Keras: as many weights, drawn from the same distributions.
Shape suffixes: B rows.
"""

from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from servery_trainer.networks import (
    Autoencoder,
    Convolutional,
    Custom,
    Dense,
    Embedding,
    Family,
    Recurrent,
    Transformer,
    TwoTower,
)
from servery_trainer.pytorch_framework import layers
from servery_trainer.pytorch_framework.recurrent import Reader


def build(family: Family, shape: tuple[int, ...], classes: int, vocabulary: int) -> nn.Module:
    """See `Framework.build`; `torch.manual_seed` decides the weights."""
    match family:
        case Dense():
            sizes = (prod(shape), *family.hidden_units)
            return nn.Sequential(
                nn.Flatten(), *_hidden(sizes, family.dropout), layers.dense(sizes[-1], classes)
            )
        case Convolutional():
            return _convolutional(family, shape, classes)
        case Embedding():
            sizes = (family.dimension, *family.hidden_units)
            return nn.Sequential(
                _MeanOfWords(vocabulary, family.dimension),
                nn.Dropout(family.dropout),
                *_hidden(sizes, family.dropout),
                layers.dense(sizes[-1], classes),
            )
        case Recurrent():
            reader = Reader(family, shape, vocabulary)
            dropout = nn.Dropout(family.dropout)
            return nn.Sequential(reader, dropout, layers.dense(reader.width, classes))
        case Transformer():
            encoder = _Encoder(family, shape, vocabulary)
            return nn.Sequential(encoder, layers.dense(family.dimension, classes))
        case Autoencoder():
            return _autoencoder(family, shape[0])
        case TwoTower():
            return _TwoTowers(family, classes, vocabulary)
        case Custom():
            raise TypeError("a custom family builds a network of Keras")


def _hidden(sizes: tuple[int, ...], dropout: float) -> list[nn.Module]:
    blocks = ((layers.dense(*pair), nn.ReLU(), nn.Dropout(dropout)) for pair in pairwise(sizes))
    return [layer for block in blocks for layer in block]


def _convolutional(family: Convolutional, shape: tuple[int, ...], classes: int) -> nn.Module:
    *sides, depth = shape
    blocks: list[nn.Module] = [layers.ChannelsFirst()]
    for filters in family.filters:
        blocks += [layers.convolution(len(sides), depth, filters), nn.ReLU()]
        depth = filters
        if min(sides) >= 4:
            blocks.append(nn.MaxPool2d(2) if len(sides) == 2 else nn.MaxPool1d(2))
            sides = [side // 2 for side in sides]
    units = family.dense_units
    return nn.Sequential(
        *blocks,
        nn.Flatten(),
        *_hidden((prod(sides) * depth, units), family.dropout),
        layers.dense(units, classes),
    )


def _autoencoder(family: Autoencoder, width: int) -> nn.Module:
    blocks: list[nn.Module] = [nn.Dropout(family.dropout)]
    sizes = (width, *family.layers(width))
    for place, pair in enumerate(pairwise(sizes)):
        is_code = place == len(family.hidden_units)
        blocks += [layers.dense(*pair)] if is_code else [layers.dense(*pair), nn.ReLU()]
    return nn.Sequential(*blocks, layers.dense(sizes[-1], width))


class _MeanOfWords(nn.Module):
    """The mean of the vectors of all words of a row."""

    def __init__(self, vocabulary: int, dimension: int) -> None:
        super().__init__()
        self.words = layers.embedding(vocabulary, dimension)

    def forward(self, tokens_B: Tensor) -> Tensor:
        return layers.mean(self.words(tokens_B.long()), tokens_B != 0)


class _Encoder(nn.Module):
    """Self-attention over words or steps, and the mean of what comes of them."""

    def __init__(self, family: Transformer, shape: tuple[int, ...], vocabulary: int) -> None:
        super().__init__()
        self.has_words = bool(vocabulary)
        dimension = family.dimension
        if vocabulary:
            self.first: nn.Module = layers.embedding(vocabulary, dimension)
        else:
            self.first = layers.dense(shape[-1], dimension)
        self.places = nn.Parameter(torch.randn(shape[0], dimension) * 0.05)
        self.dropout = nn.Dropout(family.dropout)
        self.blocks = nn.ModuleList(layers.Block(family) for _ in range(family.layers))
        self.last = layers.normalization(dimension)

    def forward(self, steps: Tensor) -> Tensor:
        there_B = steps != 0 if self.has_words else None
        words = self.first(steps.long() if self.has_words else steps)
        hidden = self.dropout(words + self.places)
        for block in self.blocks:
            hidden = block(hidden, there_B)
        return layers.mean(self.last(hidden), there_B)


class _TwoTowers(nn.Module):
    """Vectors of users and of all items; who is unknown fits nothing better than anything else."""

    def __init__(self, family: TwoTower, items: int, users: int) -> None:
        super().__init__()
        self.users = layers.embedding(users, family.dimension)
        self.items = nn.Parameter(torch.randn(items, family.dimension) * 0.05)

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return self.users(numbers[:, 0].long()) * (numbers != 0), self.items

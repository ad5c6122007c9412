"""Objectives, in PyTorch.

Shape suffixes: B rows.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from servery_trainer import objectives


class Criterion(Protocol):
    """An objective as it is computed; see there for what each one is."""

    def losses(self, features: Tensor, outputs: Any, values: Tensor) -> Tensor:
        """Return the loss of each row [B]; their mean is minimised.

        Args:
            features: What the network was given.
            outputs: What it said: a tensor, or a tuple if it has several outputs.
            values: `Target.values` of the rows.
        """

    def figures(self, features: Tensor, outputs: Any, values: Tensor) -> Tensor:
        """Return a figure for each row [B], float32, whose mean people follow; see `losses`."""

    def answers(self, features: Tensor, outputs: Any) -> Tensor:
        """Turn what the network says into the answers that its head decodes."""


def criterion(objective: objectives.Objective) -> Criterion:
    """Return how an objective is computed."""
    match objective:
        case objectives.CrossEntropy():
            return _CrossEntropy(torch.as_tensor(objective.class_weights))
        case objectives.SquaredError():
            return _SquaredError(objective)
        case objectives.ForecastError():
            return _ForecastError(objective.error, torch.as_tensor(objective.linear))
        case objectives.Reconstruction():
            return _Reconstruction()
        case objectives.LabelCrossEntropy():
            without, with_it = map(torch.as_tensor, (objective.without, objective.with_it))
            return _LabelCrossEntropy(without, with_it)
        case objectives.BatchSoftmax():
            log_shares, known = objective.log_shares, objective.taken_keys()
            return _BatchSoftmax(torch.as_tensor(log_shares), torch.as_tensor(known))


@dataclass(frozen=True)
class _CrossEntropy:
    class_weights: Tensor

    def losses(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        losses = functional.cross_entropy(outputs, values, reduction="none")
        return losses * self.class_weights[values]

    def figures(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        """1 for the true class, else 0."""
        return (outputs.argmax(dim=1) == values).float()

    def answers(self, features: Tensor, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return outputs.softmax(dim=1)


@dataclass(frozen=True)
class _SquaredError:
    objective: objectives.SquaredError

    def losses(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        aims = (values - self.objective.mean) / self.objective.deviation
        return (outputs - aims).square().mean(dim=1)

    def figures(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        """How far off the numbers are, in their own unit."""
        return (self.answers(features, outputs) - values).abs().mean(dim=1)

    def answers(self, features: Tensor, outputs: Tensor) -> Tensor:
        """Numbers in their own unit."""
        return outputs * self.objective.deviation + self.objective.mean


@dataclass(frozen=True)
class _ForecastError(_SquaredError):
    linear: Tensor

    def losses(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        return super().losses(features, self._whole(features, outputs), values)

    def answers(self, features: Tensor, outputs: Tensor) -> Tensor:
        return super().answers(features, self._whole(features, outputs))

    def _whole(self, features: Tensor, outputs: Tensor) -> Tensor:
        """Return the forecasts of which the network tells a part."""
        return outputs + features[:, :, 0] @ self.linear


class _Reconstruction:
    def losses(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        """The mean squared error over the features; `values` teach nothing."""
        return (outputs - features).square().mean(dim=1)

    def figures(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        """The mean absolute error over the features."""
        return (outputs - features).abs().mean(dim=1)

    def answers(self, features: Tensor, outputs: Tensor) -> Tensor:
        """The losses, [B, 1]."""
        return (outputs - features).square().mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class _LabelCrossEntropy:
    without: Tensor
    with_it: Tensor

    def losses(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        """The mean over the labels."""
        losses = functional.binary_cross_entropy_with_logits(
            outputs, values.float(), reduction="none"
        )
        return (losses * torch.where(values > 0, self.with_it, self.without)).mean(dim=1)

    def figures(self, features: Tensor, outputs: Tensor, values: Tensor) -> Tensor:
        """1 if all labels are right, else 0."""
        return ((outputs >= 0) == (values > 0)).all(dim=1).float()

    def answers(self, features: Tensor, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return outputs.sigmoid()


@dataclass(frozen=True)
class _BatchSoftmax:
    log_shares: Tensor
    taken: Tensor

    def losses(self, features: Tensor, outputs: Any, values: Tensor) -> Tensor:
        products = self._products(outputs, values)
        return functional.cross_entropy(products, torch.arange(len(products)), reduction="none")

    def figures(self, features: Tensor, outputs: Any, values: Tensor) -> Tensor:
        """1 if no item of another row fits better, else 0."""
        products = self._products(outputs, values)
        return (products.diagonal() == products.amax(dim=1)).float()

    def answers(self, features: Tensor, outputs: Any) -> Tensor:
        """The number of the user, then the score of each item."""
        users, items = outputs
        return torch.cat([features, users @ items.T + self.log_shares], dim=1)

    def _products(self, outputs: Any, values: Tensor) -> Tensor:
        """Return how well each user of a batch fits the item of each row [B, B].

        Far from it for items of other rows that are the same, or taken by the user.
        """
        users, items = outputs
        numbers, codes = values[:, 0], values[:, 1]
        keys = numbers[:, None] * len(self.log_shares) + codes[None, :]
        places = torch.searchsorted(self.taken, keys, right=True) - 1
        others = (self.taken[places] == keys) | (codes[:, None] == codes[None, :])
        others = others & ~torch.eye(len(codes), dtype=torch.bool)
        return (users @ items[codes].T).masked_fill(others, -1e9)

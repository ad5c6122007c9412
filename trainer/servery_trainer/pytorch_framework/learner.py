"""Fits a PyTorch network step by step."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from servery.trainer.v1 import training_pb2
from servery_trainer.checkpoints import Arrays
from servery_trainer.hyperparameters import Training
from servery_trainer.preprocessing import FloatArray
from servery_trainer.pytorch_framework.criteria import Criterion
from servery_trainer.pytorch_framework.network import PyTorchNetwork

_OF_OPTIMIZER: Final = "optimizer."


class PyTorchLearner:
    """See `frameworks.Learner`.

    Args:
        network: From features to outputs; changed in place.
        criterion: What to fit it on.
        settings: How.
    """

    def __init__(self, network: PyTorchNetwork, criterion: Criterion, settings: Training) -> None:
        self._network = network
        self._criterion = criterion
        self._settings = settings
        self._weights = network.weights
        self._optimizer = _optimizer(self._weights, settings)

    def learn(self, features: FloatArray, values: NDArray[Any]) -> tuple[float, float]:
        """See `Learner`."""
        self._network.train()
        loss, figure = self._outcome(features, values)
        minimised = loss / len(features)
        if self._settings.l2:
            squares = [weight.square().sum() for weight in self._weights if weight.ndim > 1]
            minimised = minimised + self._settings.l2 * torch.stack(squares).sum()
        self._optimizer.zero_grad()
        minimised.backward()
        if self._settings.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self._weights, self._settings.max_gradient_norm)
        self._optimizer.step()
        return loss.item(), figure.item()

    def judge(self, features: FloatArray, values: NDArray[Any]) -> tuple[float, float]:
        """See `Learner`."""
        self._network.eval()
        with torch.inference_mode():
            loss, figure = self._outcome(features, values)
        return loss.item(), figure.item()

    def _outcome(self, features: FloatArray, values: NDArray[Any]) -> tuple[Tensor, Tensor]:
        given, truths = torch.as_tensor(features), torch.as_tensor(values)
        outputs = self._network(given)
        return (
            self._criterion.losses(given, outputs, truths).sum(),
            self._criterion.figures(given, outputs, truths).sum(),
        )

    def set_learning_rate(self, rate: float) -> None:
        """See `Learner`."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def state(self) -> Mapping[str, Arrays]:
        """See `Learner`; the optimizer keeps nothing before its first step."""
        states = [self._optimizer.state[weight] for weight in self._weights]
        kept = {
            f"{_OF_OPTIMIZER}{name}": [np.array(state[name].numpy()) for state in states]
            for name in states[0]
        }
        random = torch.get_rng_state().numpy()
        return {"network": self._network.get_weights(), "random": [random], **kept}

    def restore(self, state: Mapping[str, Arrays]) -> None:
        """See `Learner`."""
        self._network.set_weights(list(state["network"]))
        for group, arrays in state.items():
            name = group.removeprefix(_OF_OPTIMIZER)
            if name != group:
                for weight, array in zip(self._weights, arrays, strict=True):
                    self._optimizer.state[weight][name] = torch.tensor(array)
        torch.set_rng_state(torch.tensor(state["random"][0]))


def _optimizer(weights: list[torch.nn.Parameter], settings: Training) -> torch.optim.Optimizer:
    rate = settings.learning_rate
    match settings.optimizer:
        case training_pb2.OPTIMIZER_ADAMW:
            return torch.optim.AdamW(
                weights, rate, eps=_EPSILON, weight_decay=settings.weight_decay
            )
        case training_pb2.OPTIMIZER_SGD:
            return torch.optim.SGD(weights, rate, momentum=settings.momentum)
        case _:
            return torch.optim.Adam(weights, rate, eps=_EPSILON)


_EPSILON: Final = 1e-7
"""As in Keras, so that specs mean the same in both."""

"""PyTorch, behind the port of frameworks."""

import logging
from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Any, Final

import torch
from numpy.typing import NDArray

from servery_trainer.frameworks import Answering, Learner
from servery_trainer.hyperparameters import Training
from servery_trainer.networks import Family
from servery_trainer.objectives import Objective
from servery_trainer.preprocessing import FloatArray
from servery_trainer.pytorch_framework import families
from servery_trainer.pytorch_framework.answering import PyTorchAnswering
from servery_trainer.pytorch_framework.criteria import criterion
from servery_trainer.pytorch_framework.learner import PyTorchLearner
from servery_trainer.pytorch_framework.network import PyTorchNetwork

_LIBRARIES: Final = ("torch", "onnxscript")


class PyTorch:
    """See `frameworks.Framework`."""

    def libraries(self) -> dict[str, str]:
        """See `Framework`."""
        return {name: version(name) for name in _LIBRARIES}

    def configure(self, threads: int) -> None:
        """See `Framework`."""
        logging.getLogger("torch").setLevel(logging.ERROR)  # it warns of what is not needed
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        torch.use_deterministic_algorithms(mode=True)

    def build(
        self, family: Family, shape: tuple[int, ...], classes: int, vocabulary: int, seed: int
    ) -> PyTorchNetwork:
        """See `Framework`."""
        torch.manual_seed(seed)
        return PyTorchNetwork(families.build(family, shape, classes, vocabulary), shape)

    def last_layer(self, network: PyTorchNetwork) -> Collection[int]:
        """See `Framework`."""
        own = {id(weight) for weight in network.last_layer.parameters()}
        return {place for place, weight in enumerate(network.weights) if id(weight) in own}

    def learner(
        self,
        network: PyTorchNetwork,
        objective: Objective,
        settings: Training,
        values: NDArray[Any],
    ) -> Learner:
        """See `Framework`."""
        return PyTorchLearner(network, criterion(objective), settings)

    def answering(
        self,
        networks: Sequence[PyTorchNetwork],
        objective: Objective,
        weights: FloatArray | None = None,
    ) -> Answering:
        """See `Framework`."""
        return PyTorchAnswering(networks, criterion(objective), weights)

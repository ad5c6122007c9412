"""A PyTorch network, behind the port of frameworks."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class PyTorchNetwork(nn.Module):
    """See `frameworks.Network`.

    Args:
        layers: From features to outputs.
        shape: Of the features of one row.
    """

    def __init__(self, layers: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._layers = layers
        self.shape = shape

    def forward(self, features: Tensor) -> Any:
        """Return the outputs for a batch."""
        return self._layers(features)

    @property
    def weights(self) -> list[nn.Parameter]:
        """What training changes, in an order that the family decides."""
        return [weight for weight in self.parameters() if weight.requires_grad]

    @property
    def last_layer(self) -> nn.Module:
        """The layer next to the outputs; all of a network that is no sequence of layers."""
        return self._layers[-1] if isinstance(self._layers, nn.Sequential) else self._layers

    def get_weights(self) -> list[NDArray[Any]]:
        """See `Network`."""
        return [weight.numpy(force=True).copy() for weight in self.weights]

    def set_weights(self, weights: list[NDArray[Any]]) -> None:
        """See `Network`."""
        with torch.no_grad():
            for weight, array in zip(self.weights, weights, strict=True):
                weight.copy_(torch.tensor(array))

    def count_params(self) -> int:
        """See `Network`."""
        return sum(weight.numel() for weight in self.weights)

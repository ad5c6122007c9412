"""Recurrent networks that read words or steps one by one, in PyTorch.

Shape suffixes: B rows.
"""

import torch
from torch import Tensor, nn

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.networks import Recurrent
from servery_trainer.pytorch_framework import layers


class Reader(nn.Module):
    """What an LSTM or a GRU holds after the last step that is there, from one end or from both."""

    def __init__(self, family: Recurrent, shape: tuple[int, ...], vocabulary: int) -> None:
        super().__init__()
        self.words = layers.embedding(vocabulary, family.dimension) if vocabulary else None
        width = family.dimension if vocabulary else shape[-1]
        self.forwards = _cell(family, width)
        self.backwards = _cell(family, width) if family.bidirectional else None
        self.width = family.units * (1 + family.bidirectional)
        """Numbers of a row that come out."""

    def forward(self, steps: Tensor) -> Tensor:
        """Read tokens [B, T], of which 0 is padding behind them, or steps [B, T, D]."""
        if self.words is None:
            hidden_B, lengths_B = steps, torch.full_like(steps[:, 0, 0], steps.shape[1]).long()
        else:
            tokens_B = steps.long()
            hidden_B, lengths_B = self.words(tokens_B), (tokens_B != 0).sum(dim=1)
        read = _last(self.forwards(hidden_B)[0], lengths_B)
        if self.backwards is None:
            return read
        turned = self.backwards(_turned(hidden_B, lengths_B))[0]
        return torch.cat([read, _last(turned, lengths_B)], dim=1)


def _last(hidden_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the last step of each row that is there, 0 if there is none."""
    places = (lengths_B - 1).clamp(min=0)[:, None, None]
    last = hidden_B.gather(1, places.expand(-1, 1, hidden_B.shape[2]))[:, 0]
    return last * (lengths_B > 0)[:, None]


def _turned(hidden_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the steps of each row that are there in reverse, then any."""
    places = torch.arange(hidden_B.shape[1], device=hidden_B.device)
    places_B = (lengths_B[:, None] - 1 - places[None, :]).clamp(min=0)
    return hidden_B.gather(1, places_B[:, :, None].expand(-1, -1, hidden_B.shape[2]))


def _cell(family: Recurrent, width: int) -> nn.LSTM | nn.GRU:
    lstm = family.cell == pb.RECURRENT_CELL_LSTM
    cell = (nn.LSTM if lstm else nn.GRU)(width, family.units, batch_first=True)
    for gate in cell.weight_ih_l0.chunk(4 if lstm else 3):
        nn.init.xavier_uniform_(gate)
    nn.init.orthogonal_(cell.weight_hh_l0)
    nn.init.zeros_(cell.bias_ih_l0)
    nn.init.zeros_(cell.bias_hh_l0)
    if lstm:  # the sum of both biases is one, so one of them is enough
        cell.bias_hh_l0.requires_grad_(requires_grad=False)
        with torch.no_grad():  # remember at first: Jozefowicz et al. (2015)
            cell.bias_ih_l0.chunk(4)[1].fill_(1)
    return cell

"""Trained PyTorch networks, asked and converted."""

import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from servery_trainer.frameworks import ANSWERS, FEATURES, OPSET, ConversionError
from servery_trainer.preprocessing import BATCH, FloatArray
from servery_trainer.pytorch_framework.criteria import Criterion
from servery_trainer.pytorch_framework.network import PyTorchNetwork


class PyTorchAnswering:
    """See `frameworks.Answering`.

    Args:
        networks: From features to outputs.
        criterion: What they were fitted on.
        weights: See `Framework.answering`.
    """

    def __init__(
        self,
        networks: Sequence[PyTorchNetwork],
        criterion: Criterion,
        weights: FloatArray | None,
    ) -> None:
        self._model = _Answers(networks, criterion, weights).eval()
        self._shape = networks[0].shape

    def predict(self, features: FloatArray) -> FloatArray:
        """See `Answering`."""
        with torch.inference_mode():
            answers: FloatArray = self._model(torch.as_tensor(features)).numpy()
        return answers

    def to_onnx(self) -> onnx.ModelProto:
        """See `Answering`; without the traces of source files that the converter leaves."""
        example = torch.zeros(2, *self._shape)
        rows = torch.export.Dim(BATCH)
        try:
            with warnings.catch_warnings():  # of PyTorch, about its own insides
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    self._model,
                    (example,),
                    input_names=[FEATURES],
                    output_names=[ANSWERS],
                    dynamic_shapes=({0: rows},),
                    opset_version=OPSET,
                    dynamo=True,
                    verbose=False,
                )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConversionError(f"PyTorch cannot convert the network: {error}") from error
        network: onnx.ModelProto = program.model_proto
        for part in (*network.graph.node, *network.graph.input, *network.graph.output):
            _forget(part)
        return network


class _Answers(nn.Module):
    """The mean answers of networks, or their sum with weights."""

    def __init__(
        self,
        networks: Sequence[PyTorchNetwork],
        criterion: Criterion,
        weights: FloatArray | None,
    ) -> None:
        super().__init__()
        self._weights = None if weights is None else weights.tolist()
        self._networks = nn.ModuleList(networks)
        self._criterion = criterion

    def forward(self, features: Tensor) -> Tensor:
        each = [self._criterion.answers(features, network(features)) for network in self._networks]
        if self._weights is not None:
            weighted = [
                answers * weight for answers, weight in zip(each, self._weights, strict=True)
            ]
            return torch.stack(weighted).sum(dim=0)
        return torch.stack(each).mean(dim=0) if len(each) > 1 else each[0]


def _forget(part: Any) -> None:
    del part.metadata_props[:]
    part.doc_string = ""

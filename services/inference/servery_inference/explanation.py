"""The graph of a version that explains its answers: what it must be, and who learns of it how.

It takes what the model takes, and gives other outputs: a request with the parameter `explain` is
answered by it instead of the model.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference.engine import LoadFailedError
from servery_inference.model_completion import resolve
from servery_inference.model_config import ENSEMBLE, GivenConfig, offered
from servery_inference.options import ModelOptions
from servery_inference.signature import Signature, Tensor
from servery_rpc.errors import ServeryError

FILE: Final = "explain.onnx"
PARAMETER: Final = "explanation"
"""Key among the parameters of a model's config: its value tells in JSON what explanations hold."""


class ExplanationUnavailableError(ServeryError):
    """A version that answers has no graph that explains its answers."""

    reason = reasons.ERROR_REASON_EXPLANATION_UNAVAILABLE

    def __init__(self, config: ModelConfig, version: int) -> None:
        super().__init__(
            f"model '{config.name}' cannot explain its answers: {_why_not(config, version)}",
            model=config.name,
            version=str(version),
        )


@contextmanager
def blamed() -> Iterator[None]:
    """Name the file in whatever a load inside the block fails for."""
    try:
        yield
    except LoadFailedError as error:
        raise LoadFailedError(f"{FILE}: {error}") from None


def explaining(
    config: ModelConfig, model: Signature, graph: Signature, options: ModelOptions
) -> ModelConfig:
    """Return what the graph that explains is told to be: the model, but for its outputs.

    Args:
        config: Of the model, complete.
        model: What the graph of the model declares.
        graph: What the graph that explains declares.
        options: How both run.

    Raises:
        LoadFailedError: The graph does not take what the model takes, gives no rows where the
            model does, or the model keeps state between requests.
    """
    if config.HasField("sequence_batching"):
        raise LoadFailedError(
            "a model with sequences cannot be explained, for its answers depend on more than one"
            " request; leave the file out"
        )
    for name in sorted(model.inputs.keys() | graph.inputs.keys()):
        theirs, own = model.inputs.get(name), graph.inputs.get(name)
        if theirs != own:
            raise LoadFailedError(
                f"input '{name[:100]}' is {_told(own)}, but {_told(theirs)} in the graph of the"
                " model; both must take the same"
            )
    described = ModelConfig()
    described.CopyFrom(config)
    described.ClearField("output")
    given = GivenConfig(described, names_max_batch_size=True)
    return resolve(config.name, given, graph, options, auto_max_batch_size=0)


def announce(explanation: ModelConfig, config: ModelConfig) -> None:
    """Tell the readers of a model's config what its explanations hold."""
    outputs = [
        {"name": tensor.name, "datatype": tensor.datatype.wire, "shape": tensor.shape}
        for tensor in offered(explanation).outputs.values()
    ]
    config.parameters[PARAMETER].string_value = json.dumps({"outputs": outputs})


def _told(tensor: Tensor | None) -> str:
    if tensor is None:
        return "not there"
    return f"{tensor.datatype.wire} of shape {list(tensor.shape)}"


def _why_not(config: ModelConfig, version: int) -> str:
    if config.platform == ENSEMBLE:
        return "it is an ensemble; ask one of the models that it is made of"
    if config.HasField("sequence_batching"):
        return "they depend on more than one request"
    return (
        f"version {version} has no {FILE}; ask a version that has one, or train one with"
        " explanations"
    )

"""The port to the libraries that networks are built, trained and converted with.

All else that a job does (the loop of training and its checkpoints, preprocessing, gates, the
evaluation of the graph) is the same for each of them.
"""

from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Protocol

import onnx
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.checkpoints import Arrays
from servery_trainer.hyperparameters import Training
from servery_trainer.networks import Family
from servery_trainer.objectives import Objective
from servery_trainer.preprocessing import FloatArray

FEATURES: Final = "features"
"""What the input of a converted network is called."""

ANSWERS: Final = "answers"
"""What its output is called."""

OPSET: Final = 18
"""Of ONNX, that networks are converted to: the newest that tf2onnx writes."""


class ConversionError(Exception):
    """The converter wrote a graph that is not the one that was asked for. A bug, not bad input."""


class Network(Protocol):
    """A network of one framework, from features to outputs."""

    def get_weights(self) -> list[NDArray[Any]]:
        """Return copies of all weights, in an order of their own."""

    def set_weights(self, weights: list[NDArray[Any]]) -> None:
        """Take what `get_weights` of a network built alike returned."""

    def count_params(self) -> int:
        """Count the numbers in its weights."""


class Learner(Protocol):
    """A network while it is fitted: single steps, and all that they change."""

    def learn(self, features: FloatArray, values: NDArray[Any]) -> tuple[float, float]:
        """Do one step on a batch; return the sums of its losses and figures before the step."""

    def judge(self, features: FloatArray, values: NDArray[Any]) -> tuple[float, float]:
        """Return the sums of the losses and figures of a batch, and change nothing."""

    def set_learning_rate(self, rate: float) -> None:
        """Decide the size of the steps from now on; it is that of the settings before."""

    def state(self) -> Mapping[str, Arrays]:
        """Return copies of all that steps change: weights, optimizer, random numbers."""

    def restore(self, state: Mapping[str, Arrays]) -> None:
        """Take what `state` of a learner made alike returned; it may hold other groups too."""


class Answering(Protocol):
    """Trained networks from features to answers, those of several as one."""

    def predict(self, features: FloatArray) -> FloatArray:
        """Return the answers to one batch."""

    def to_onnx(self) -> onnx.ModelProto:
        """Convert it; `FEATURES` to `ANSWERS`, of any number of rows, in standard ONNX of `OPSET`.

        Raises:
            ConversionError: The converter failed.
        """


class Framework(Protocol):
    """A library, made deterministic: equal arguments give equal bits on one machine."""

    def libraries(self) -> dict[str, str]:
        """Return the versions of what decides the weights and their conversion."""

    def configure(self, threads: int) -> None:
        """Prepare the process, once and first, to compute with so many threads."""

    def build(
        self, family: Family, shape: tuple[int, ...], classes: int, vocabulary: int, seed: int
    ) -> Network:
        """Build a network with random weights and seed all that is random in its training.

        Args:
            family: Its kind and sizes.
            shape: Of the features of one row: [features], [tokens], [step, channel] or, for
                images, [height, width, channel].
            classes: Number of outputs; an autoencoder has one per feature instead.
            vocabulary: Different numbers of a token, of which 0 is padding; 0 if there are no
                tokens.
            seed: 0 to 2^32 - 1.

        Returns:
            One from float32 features [batch, *shape] to logits [batch, classes]; with two
            towers to the vectors of users [batch, dimension] and those of all classes [classes,
            dimension].
        """

    def last_layer(self, network: Any) -> Collection[int]:
        """Return the places, in `Network.get_weights`, of the weights next to the outputs."""

    def learner(
        self, network: Any, objective: Objective, settings: Training, values: NDArray[Any]
    ) -> Learner:
        """Return what fits `network`, changed in place.

        Args:
            network: What `build` returned.
            objective: What to fit it on.
            settings: How.
            values: `Target.values`: looked at for their shape and type alone.
        """

    def answering(
        self, networks: Sequence[Any], objective: Objective, weights: FloatArray | None = None
    ) -> Answering:
        """Join networks that `build` returned to what they were fitted on.

        Args:
            networks: They take features of one shape.
            objective: What they were fitted on.
            weights: How much the answers of each count in their sum; None: that is their mean.
        """


_INSTALLED_AS: Final = {
    pb.FRAMEWORK_KERAS: ("tensorflow", "trainer"),
    pb.FRAMEWORK_PYTORCH: ("torch", "trainer-pytorch"),
}
"""The module that tells whether a framework is there, and the extra that brings it."""


def require(framework: pb.Framework.ValueType, field: str) -> None:
    """Refuse a framework that is not installed, without importing it.

    Raises:
        FieldInvalidError: It is not; names `field` and the extra to install.
    """
    module, extra = _INSTALLED_AS[framework]
    if find_spec(module) is None:
        rule = f"be another one, or the trainer be installed with the extra `{extra}`"
        raise FieldInvalidError(field, pb.Framework.Name(framework), rule)


def load(framework: pb.Framework.ValueType) -> Framework:
    """Import the library, which takes seconds, and return the port to it."""
    if framework == pb.FRAMEWORK_PYTORCH:
        from servery_trainer.pytorch_framework.framework import PyTorch

        return PyTorch()
    from servery_trainer.keras_framework.framework import Keras

    return Keras()

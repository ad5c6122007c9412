"""How large a network would be, told before it is built."""

from collections.abc import Sequence
from math import prod
from typing import Final

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
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
from servery_trainer.spec import ROOT

MAX_PARAMETERS: Final = 100_000_000
"""400 MB of weights, about 1.6 GB in training; an ONNX file without external data ends at 2 GB."""


def parameter_count(
    family: Family, shape: tuple[int, ...], classes: int, vocabulary: int = 0
) -> int:
    """Count the weights of the network `families.build` makes of the same arguments.

    Those of a custom network only building it can tell: 0.
    """
    match family:
        case Dense(hidden_units=layers):
            count, width = 0, prod(shape)
        case Convolutional(filters=filters, dense_units=units):
            layers = (units,)
            *sides, depth = shape
            count = 0
            for size in filters:
                count, depth = count + (3 ** len(sides) * depth + 1) * size, size
                if min(sides) >= 4:
                    sides = [side // 2 for side in sides]
            width = prod(sides) * depth
        case Embedding(dimension=width, hidden_units=layers):
            count = vocabulary * width
        case Recurrent(units=units, dimension=dimension):
            layers = ()
            gates, biases = (4, 1) if family.cell == pb.RECURRENT_CELL_LSTM else (3, 2)
            directions = 1 + family.bidirectional
            seen = dimension if vocabulary else shape[-1]
            weights = gates * units * (seen + units + biases)
            count, width = vocabulary * dimension + directions * weights, directions * units
        case Transformer(dimension=width, feed_forward_units=units):
            layers = ()
            attention = 4 * (width + 1) * width
            block = attention + 4 * width + (width + 1) * units + (units + 1) * width
            first = vocabulary or shape[-1] + 1
            count = (first + shape[0]) * width + family.layers * block + 2 * width
        case Autoencoder():
            layers = family.layers(shape[0])
            count, width, classes = 0, shape[0], shape[0]
        case TwoTower(dimension=dimension):
            return (vocabulary + classes) * dimension
        case Custom():
            return 0
    for size in (*layers, classes):
        count, width = count + (width + 1) * size, size
    return count


_LEVERS: Final = {
    Dense: "hidden_units",
    Convolutional: "filters",
    Embedding: "dimension",
    Recurrent: "units",
    Transformer: "dimension",
    Autoencoder: "hidden_units",
    TwoTower: "dimension",
    Custom: "parameters",
}
"""The field to make a network smaller by."""


def check_size(
    networks: Sequence[Family], shape: tuple[int, ...], classes: int, vocabulary: int = 0
) -> None:
    """Refuse networks that together would be too large for the data they are to be trained on.

    Args:
        networks: `Spec.networks`.
        shape: See `families.build`, as the other arguments.
        classes: Number of outputs.
        vocabulary: Different numbers of a token, or 0.

    Raises:
        FieldInvalidError: They would have more than `MAX_PARAMETERS` weights; names the largest.
    """
    counts = [parameter_count(family, shape, classes, vocabulary) for family in networks]
    if sum(counts) <= MAX_PARAMETERS:
        return
    largest = counts.index(max(counts))
    family, root = networks[largest], f"{ROOT}.training.members[{largest - 1}]"
    words = f", {vocabulary} words" if vocabulary else ""
    subject = f"the {len(counts)} networks" if len(counts) > 1 else "the network"
    rule = (
        f"be smaller: with rows of shape {list(shape)}{words} and {classes} outputs {subject}"
        f" would have {sum(counts)} weights, the limit is {MAX_PARAMETERS}"
    )
    lever = _LEVERS[type(family)]
    value = getattr(family, lever)
    shown = list(value) if isinstance(value, tuple) else value
    raise FieldInvalidError(f"{root if largest else ROOT}.{family.name}.{lever}", shown, rule)

"""How large a network would be, told before it is built."""

from math import prod
from typing import Final

from servery_rpc.errors import FieldInvalidError
from servery_trainer.networks import Convolutional, Dense
from servery_trainer.spec import ROOT

MAX_PARAMETERS: Final = 100_000_000
"""400 MB of weights, about 1.6 GB in training; an ONNX file without external data ends at 2 GB."""


def parameter_count(family: Dense | Convolutional, shape: tuple[int, ...], classes: int) -> int:
    """Count the weights of the network `families.build` makes of the same arguments."""
    match family:
        case Dense(hidden_units=layers):
            count, width = 0, prod(shape)
        case Convolutional(filters=filters, dense_units=units):
            layers = (units,)
            height, breadth, depth = shape
            count = 0
            for size in filters:
                count, depth = count + (9 * depth + 1) * size, size
                if min(height, breadth) >= 4:
                    height, breadth = height // 2, breadth // 2
            width = height * breadth * depth
    for size in (*layers, classes):
        count, width = count + (width + 1) * size, size
    return count


def check_size(family: Dense | Convolutional, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a network that would be too large for the data it is to be trained on.

    Raises:
        FieldInvalidError: It would have more than `MAX_PARAMETERS` weights.
    """
    count = parameter_count(family, shape, classes)
    if count > MAX_PARAMETERS:
        rule = (
            f"be smaller: with rows of shape {list(shape)} and {classes} classes the network would"
            f" have {count} weights, the limit is {MAX_PARAMETERS}"
        )
        if isinstance(family, Dense):
            raise FieldInvalidError(f"{ROOT}.dense.hidden_units", list(family.hidden_units), rule)
        raise FieldInvalidError(f"{ROOT}.convolutional.filters", list(family.filters), rule)

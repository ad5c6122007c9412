"""Tensors that lie beside a model as files, in the layout of `raw_input_contents`."""

import math
from pathlib import Path
from typing import Final

from servery_inference.datatypes import Datatype
from servery_inference.engine import LoadFailedError
from servery_inference.request import Array, InferenceRequestInvalidError, InferRequest, Input
from servery_inference.signature import Shape, Signature, Tensor
from servery_inference.tensors import bind

MAX_ELEMENTS: Final = 1 << 26
"""Of a tensor that a config describes."""


def is_possible(shape: Shape) -> bool:
    """Tell whether a tensor of `shape` can be made: no free axis, and not too many elements."""
    return min(shape, default=0) >= 0 and math.prod(shape) <= MAX_ELEMENTS


def read_tensor(what: str, folder: Path, name: str, datatype: Datatype, shape: Shape) -> Array:
    """Read the file `name` of `folder`. Blocks.

    Args:
        what: What it is for, to begin an error with.
        folder: Of the model, with files of this kind only.
        name: Must not lead out of `folder`.
        datatype: Of its elements.
        shape: Which `is_possible`.

    Raises:
        LoadFailedError: There is no such file, or it does not hold exactly this tensor.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise LoadFailedError(f"{what} names no file in the folder '{folder.name}' of the model")
    given = Input(name, datatype.wire, shape, memoryview(path.read_bytes()), None)
    request = InferRequest("", "", "", (given,), (), parsed_bytes=0)
    try:
        return bind(request, Signature({name: Tensor(name, datatype, shape)}, {}))[name]
    except InferenceRequestInvalidError as error:
        raise LoadFailedError(f"{what} has a file that does not fit it: {error}") from None

"""The classification extension: the top classes of an output instead of its values."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference import bfloat16
from servery_inference.engine import LoadFailedError
from servery_inference.request import Array, InferenceRequestInvalidError, Output

Labels = Mapping[str, Sequence[str]]
"""Names of the classes of an output, by its name."""

_MAX_LABEL_FILE_BYTES: Final = 16 << 20


def read_labels(config: pb.ModelConfig, folders: Sequence[Path]) -> dict[str, list[str]]:
    """Read the label files that a config names, one label a line. Blocks.

    Args:
        config: Of the model.
        folders: Where to look, in this order: the model's, the version's.

    Raises:
        LoadFailedError: A file is not there, is no text, or its name leads out of the folders.
    """
    return {
        output.name: _read(output.label_filename, folders)
        for output in config.output
        if output.label_filename
    }


def classify(
    output: Output, num_classes: int, labels: Sequence[str], model: str, *, is_batched: bool
) -> Output:
    """Return the greatest values as texts `value:index[:label]`, greatest first.

    Args:
        output: Its values.
        num_classes: How many to return of each row, if there are as many.
        labels: By index; there may be fewer than classes.
        model: Its name on the wire.
        is_batched: Whether the first axis is the batch; all others are one list of classes.

    Raises:
        InferenceRequestInvalidError: The values are texts.
    """
    value = output.value
    if value.dtype.kind == "O":
        raise InferenceRequestInvalidError(
            f"output '{output.name}' of model '{model}' is BYTES, of which there are no classes",
            model,
        )
    if output.datatype == "BF16":
        value = bfloat16.to_float32(value)
    is_batched = is_batched and value.ndim > 0
    rows = (
        value.reshape(len(value), math.prod(value.shape[1:]))
        if is_batched
        else value.reshape(1, -1)
    )
    count = min(num_classes, rows.shape[1])
    classes = np.empty((len(rows), count), object)
    for row, values in enumerate(rows):
        for place, index in enumerate(_greatest(values, count)):
            classes[row, place] = _shown(values, int(index), labels)
    return Output(output.name, "BYTES", classes if is_batched else classes[0], output.region)


def _greatest(values: Array, count: int) -> Array:
    """Indices of the greatest values; of equal ones the first comes first, NaN comes last."""
    if values.dtype.kind == "f":
        return np.argsort(-values, kind="stable")[:count]
    return (len(values) - 1 - np.argsort(values[::-1], kind="stable"))[::-1][:count]


def _shown(values: Array, index: int, labels: Sequence[str]) -> str:
    value = values[index]
    number = f"{value:f}" if values.dtype.kind == "f" else str(int(value))
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}"


def _read(name: str, folders: Sequence[Path]) -> list[str]:
    if Path(name).name != name:
        raise LoadFailedError(f"label_filename {name!r} must be the name of a file, not a path")
    for folder in folders:
        file = folder / name
        if file.is_file() and not file.is_symlink():
            if file.stat().st_size > _MAX_LABEL_FILE_BYTES:
                raise LoadFailedError(f"label file {name!r} is larger than 16 MiB")
            try:
                return [line.rstrip("\r") for line in file.read_text().rstrip("\n").split("\n")]
            except UnicodeDecodeError:
                raise LoadFailedError(f"label file {name!r} is not UTF-8 text") from None
    raise LoadFailedError(f"label_filename is {name!r}, but there is no such file")

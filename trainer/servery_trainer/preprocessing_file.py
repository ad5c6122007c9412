"""Fitted preprocessing as a file, to be applied again by another job, bit for bit.

JSON: what preprocessing is made of is data. An object is `{"class": …, "fields": {…}}` of a class
below, a mapping `{"map": {…}}`, numbers of NumPy `{"array": base64, "dtype": …, "shape": …}`, and a
type of numbers `{"dtype": …}`. No other class can come out of a file.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

import numpy as np

from servery_trainer.encoders import CategoryEncoder, DateEncoder
from servery_trainer.numbering import Numbering
from servery_trainer.preprocessing import (
    ArrayPreprocessing,
    JoinedPreprocessing,
    Preprocessing,
    TablePreprocessing,
)
from servery_trainer.texts import BagPreprocessing, Tokenizer, TokenPreprocessing

_PREPROCESSING: Final = (
    ArrayPreprocessing,
    BagPreprocessing,
    CategoryEncoder,
    DateEncoder,
    JoinedPreprocessing,
    Numbering,
    TablePreprocessing,
    TokenPreprocessing,
)
_CLASSES: Final[Mapping[str, type[Any]]] = {
    known.__name__: known for known in (*_PREPROCESSING, Tokenizer)
}


class NotPreprocessingError(Exception):
    """A file is not what `dump` wrote."""


def dump(preprocessing: Preprocessing) -> bytes:
    """Write preprocessing; `load` gives back what does the same."""
    return json.dumps(_encoded(preprocessing)).encode()


def load(content: bytes) -> Preprocessing:
    """Read preprocessing.

    Raises:
        NotPreprocessingError: It is none.
    """
    try:
        preprocessing = _decoded(json.loads(content))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise NotPreprocessingError(str(error)) from error
    if not isinstance(preprocessing, _PREPROCESSING):
        raise NotPreprocessingError(f"it is {type(preprocessing).__name__}")
    return preprocessing


def _encoded(value: Any) -> Any:
    match value:
        case np.ndarray() | np.generic():
            little_endian = np.asarray(value, value.dtype.newbyteorder("<"))
            content = base64.b64encode(little_endian.tobytes()).decode()
            shape = list(little_endian.shape)
            return {"array": content, "dtype": little_endian.dtype.str, "shape": shape}
        case np.dtype():
            return {"dtype": value.str}
        case Mapping():
            return {"map": {name: _encoded(inner) for name, inner in value.items()}}
        case list() | tuple():
            return [_encoded(inner) for inner in value]
        case None | bool() | int() | float() | str():
            return value
    if not is_dataclass(value) or type(value).__name__ not in _CLASSES:
        raise TypeError(f"{type(value).__name__} is no part of preprocessing")
    named = {field.name: _encoded(getattr(value, field.name)) for field in fields(value)}
    return {"class": type(value).__name__, "fields": named}


def _decoded(value: Any) -> Any:
    match value:
        case {"array": content, "dtype": dtype, "shape": shape}:
            flat = np.frombuffer(base64.b64decode(content), np.dtype(dtype))
            return flat.reshape(shape)[()]  # Of no dimension: the number itself.
        case {"dtype": dtype}:
            return np.dtype(dtype)
        case {"map": {**inner}}:
            return {name: _decoded(each) for name, each in inner.items()}
        case {"class": name, "fields": {**inner}}:
            named = {str(field): _decoded(each) for field, each in inner.items()}
            return _CLASSES[name](**named)
        case list():
            return tuple(_decoded(each) for each in value)
        case _:
            return value

"""What a model is told to be: `config.pbtxt`, and what a complete one offers to clients.

The dims of a config leave the batch out where `max_batch_size` is above 0; a `Signature` has every
axis.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeAlias

from google.protobuf import json_format, text_format

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.datatypes import BY_CONFIG
from servery_inference.engine import LoadFailedError
from servery_inference.signature import Signature, Tensor

FILE: Final = "config.pbtxt"
PLATFORM: Final = "onnxruntime_onnx"
BACKEND: Final = "onnxruntime"
GRAPH: Final = "model.onnx"
ENSEMBLE: Final = "ensemble"

Io: TypeAlias = pb.ModelInput | pb.ModelOutput

_MAX_BATCH_SIZE: Final = re.compile(r'"?\b(?:max_batch_size|maxBatchSize)\b"?\s*:')
_SHOWN_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class GivenConfig:
    """A config as somebody wrote it."""

    message: pb.ModelConfig

    names_max_batch_size: bool
    """Whether `max_batch_size` was written, if only as 0: then it is not guessed."""

    @property
    def is_ensemble(self) -> bool:
        """Whether the model is a graph of other models, without one of its own."""
        return (
            self.message.platform == ENSEMBLE
            or self.message.WhichOneof("scheduling_choice") == "ensemble_scheduling"
        )

    @classmethod
    def from_text(cls, text: bytes) -> Self:
        """Read the protobuf text format of `config.pbtxt`.

        Raises:
            LoadFailedError: It is not that; the message names the line.
        """
        try:
            decoded = text.decode()
            message = text_format.Parse(decoded, pb.ModelConfig())
        except UnicodeDecodeError:
            raise LoadFailedError(f"{FILE} is not UTF-8 text") from None
        except (text_format.ParseError, RecursionError) as error:
            problem = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
            raise LoadFailedError(f"{FILE} is no model configuration: {problem}") from None
        return cls(message, _MAX_BATCH_SIZE.search(decoded) is not None)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the JSON that clients send with a load; integers may be strings.

        Raises:
            LoadFailedError: It is not that.
        """
        try:
            if not isinstance(json.loads(text), dict):
                raise LoadFailedError("the config is no JSON object")
            message = json_format.Parse(text, pb.ModelConfig())
        except (ValueError, json_format.ParseError, RecursionError) as error:
            problem = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
            raise LoadFailedError(f"the config is no model configuration: {problem}") from None
        return cls(message, _MAX_BATCH_SIZE.search(text) is not None)

    @classmethod
    def none(cls) -> Self:
        """Make the config of a model that has none."""
        return cls(pb.ModelConfig(), names_max_batch_size=False)


def read_config(folder: Path) -> GivenConfig:
    """Read `config.pbtxt` of a folder, if it has one.

    Raises:
        LoadFailedError: It is malformed or cannot be read.
    """
    try:
        return GivenConfig.from_text((folder / FILE).read_bytes())
    except FileNotFoundError:
        return GivenConfig.none()
    except OSError as error:
        raise LoadFailedError(f"{FILE} cannot be read: {error.strerror}") from None


def offered(config: pb.ModelConfig) -> Signature:
    """Return what a resolved config offers to clients: every axis, the batch first."""
    return Signature(
        {io.name: _tensor(io, config.max_batch_size) for io in config.input},
        {io.name: _tensor(io, config.max_batch_size) for io in config.output},
        max_batch_size=config.max_batch_size,
    )


def _tensor(io: Io, max_batch_size: int) -> Tensor:
    batch = (-1,) if max_batch_size else ()
    shape, inner = (*batch, *io.dims), (*batch, *inner_dims(io))
    optional = isinstance(io, pb.ModelInput) and io.optional
    datatype = BY_CONFIG[io.data_type]
    return Tensor(io.name, datatype, shape, inner if inner != shape else None, optional)


def inner_dims(io: Io) -> list[int]:
    """The shape that the graph sees, the batch left out."""
    return list(io.reshape.shape if io.HasField("reshape") else io.dims)

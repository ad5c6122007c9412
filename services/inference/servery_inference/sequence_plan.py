"""What a config says about sequences: places, signals to the graph, and the state at the start."""

from __future__ import annotations  # Values of enums have a type in the stubs only.

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.datatypes import BY_CONFIG
from servery_inference.engine import LoadFailedError
from servery_inference.raw_files import is_possible, read_tensor
from servery_inference.request import Array, InferenceRequestInvalidError, Terms, shown
from servery_inference.signature import Signature

STATES: Final = "initial_state"
"""Folder beside the versions with the files that `data_file` names."""

_US: Final = 1e-6
_DEFAULT_IDLE_US: Final = 1_000_000
_MANY: Final = 1 << 16

_Control = pb.ModelSequenceBatching.Control
_NUMPY: Final = {"int32_false_true": "<i4", "fp32_false_true": "<f4", "bool_false_true": "bool"}


@dataclass(frozen=True, slots=True)
class Signal:
    """An input that tells the graph about the sequence."""

    name: str
    kind: pb.ModelSequenceBatching.Control.Kind.ValueType
    values: tuple[Array, Array] | None
    """For false and for true; None for the id of the sequence."""

    datatype: pb.DataType.ValueType
    shape: tuple[int, ...]

    def of(self, terms: Terms, model: str) -> Array:
        """Return the value for one request.

        Raises:
            InferenceRequestInvalidError: The id of the sequence is not of the input's type.
        """
        if self.values is not None:
            flags = {
                _Control.CONTROL_SEQUENCE_START: terms.sequence_start,
                _Control.CONTROL_SEQUENCE_END: terms.sequence_end,
                _Control.CONTROL_SEQUENCE_READY: True,
            }
            return self.values[flags[self.kind]]
        datatype = BY_CONFIG[self.datatype].numpy
        try:
            if datatype.kind == "O":
                return np.full(self.shape, str(terms.sequence_id), datatype)
            return np.full(self.shape, int(terms.sequence_id), datatype)
        except (ValueError, OverflowError):
            raise InferenceRequestInvalidError(
                f"the id of the sequence, '{shown(str(terms.sequence_id))}', is no"
                f" {BY_CONFIG[self.datatype].wire}, which model '{model}' expects",
                model,
            ) from None


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """What a config says about sequences."""

    places: int
    idle_s: float
    is_batched: bool
    signals: tuple[Signal, ...]
    initial: Mapping[str, Array]
    """State at the beginning, by input."""

    states: Mapping[str, str]
    """Output that yields the next state, by the input that takes it."""

    @classmethod
    def of(cls, config: pb.ModelConfig, graph: Signature, folder: Path) -> Self:
        """Read a complete config, and the files it names in `folder`, that of the model. Blocks.

        Raises:
            LoadFailedError: It does not fit the graph, or asks for what is not offered.
        """
        batching = config.sequence_batching
        if batching.iterative_sequence:
            raise LoadFailedError(
                "iterative_sequence is not offered: an ONNX graph cannot put a request back"
            )
        instances = max(sum(group.count for group in config.instance_group), 1)
        if batching.WhichOneof("strategy_choice") == "oldest":
            places = batching.oldest.max_candidate_sequences * instances or _MANY
        else:
            places = max(config.max_batch_size, 1) * instances
        is_batched = config.max_batch_size > 0
        idle_us = batching.max_sequence_idle_microseconds or _DEFAULT_IDLE_US
        return cls(
            places,
            idle_us * _US,
            is_batched,
            tuple(_signal(control, graph) for control in batching.control_input),
            {s.input_name: initial_state(s, graph, is_batched, folder) for s in batching.state},
            {s.input_name: s.output_name for s in batching.state},
        )


def _signal(control: pb.ModelSequenceBatching.ControlInput, graph: Signature) -> Signal:
    tensor = graph.inputs.get(control.name)
    if tensor is None or len(control.control) != 1:
        raise LoadFailedError(
            f"control input '{control.name[:100]}' must be an input of the graph, with one control"
        )
    (said,) = control.control
    shape = (1,) * len(tensor.shape)
    if said.kind == _Control.CONTROL_SEQUENCE_CORRID:
        if said.data_type != tensor.datatype.config:
            raise LoadFailedError(
                f"control input '{control.name}' is {tensor.datatype.wire} in the graph"
            )
        return Signal(control.name, said.kind, None, said.data_type, shape)
    for name, dtype in _NUMPY.items():
        values = list(getattr(said, name))
        if values:
            if len(values) != 2 or np.dtype(dtype) != tensor.datatype.numpy:
                raise LoadFailedError(
                    f"control input '{control.name}' needs two values for {tensor.datatype.wire}"
                )
            both = np.full(shape, values[0], dtype), np.full(shape, values[1], dtype)
            return Signal(control.name, said.kind, both, tensor.datatype.config, shape)
    raise LoadFailedError(f"control input '{control.name}' has no values for false and true")


def initial_state(
    state: pb.ModelSequenceBatching.State,
    graph: Signature,
    is_batched: bool,  # noqa: FBT001  by its name at the call
    folder: Path,
) -> Array:
    """Return what the graph gets as state with the first request of a sequence.

    Where the config says nothing it is zeros, free axes 1: the graph watches for the start signal.

    Raises:
        LoadFailedError: It fits neither itself nor the graph, or there is no such file.
    """
    taker, giver = graph.inputs.get(state.input_name), graph.outputs.get(state.output_name)
    if taker is None or giver is None:
        raise LoadFailedError(
            f"the graph lacks the state '{state.input_name[:100]}' or '{state.output_name[:100]}'"
        )
    what = f"state '{state.input_name}'"
    datatype = BY_CONFIG.get(state.data_type)
    if datatype is None:
        raise LoadFailedError(f"{what} needs a data_type")
    if datatype != taker.datatype or datatype != giver.datatype:
        raise LoadFailedError(
            f"{what} is {datatype.wire}, but {taker.datatype.wire} and {giver.datatype.wire} in the"
            " graph"
        )
    if len(state.initial_state) > 1:
        raise LoadFailedError(f"{what} has {len(state.initial_state)} initial states; give one")
    dims = [1 if size == -1 else size for size in state.dims]
    for initial in state.initial_state:
        dims = list(initial.dims)
        fits = len(dims) == len(state.dims) and all(
            said in (-1, size) for said, size in zip(state.dims, dims, strict=True)
        )
        if initial.data_type != state.data_type or not fits:
            raise LoadFailedError(f"{what} has an initial_state of another data_type or other dims")
    shape = (*([1] if is_batched else []), *dims)
    if not is_possible(shape) or not taker.fits(shape):
        raise LoadFailedError(
            f"{what} begins with the shape {list(shape)}, but has {list(taker.shape)} in the graph"
        )
    for initial in state.initial_state:
        if initial.WhichOneof("state_data") is None:
            raise LoadFailedError(f"{what} has an initial_state without zero_data or data_file")
        if initial.data_file:
            return read_tensor(what, folder / STATES, initial.data_file, datatype, shape)
    return np.full(shape, "" if datatype.is_bytes else 0, datatype.numpy)

"""One ONNX graph in ONNX Runtime, on the execution provider that was asked for and no other.

Sessions are safe to use from several threads. ONNX Runtime releases the interpreter lock while it
loads and runs.
"""

import ctypes
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np
import onnxruntime as ort

from servery_inference.datatypes import BFLOAT16
from servery_inference.request import Array
from servery_inference.signature import Shape, Signature, SignatureUnsupportedError, refitted

_ONNX_BFLOAT16: Final = 16  # Of `onnx.TensorProto`.
_ABSOLUTE_PATH: Final = re.compile(r"(?<![\w.])/[^\s:'\"]+")
_SHOWN_CHARACTERS: Final = 300

_FAULTS: Final = ort.capi.onnxruntime_pybind11_state
_DATA_FAULTS: Final = (_FAULTS.InvalidArgument, _FAULTS.RuntimeException)


class LoadFailedError(Exception):
    """A version cannot be served. The message says why to whoever reads the repository index."""


class RunFailedError(Exception):
    """A graph does not take these values, though their shapes fit its signature."""


class RunEndedError(Exception):
    """A run was ended from outside, before it had a result."""


class Engine:
    """A graph ready to run.

    Args:
        sessions: Of the same graph, one for each device; runs take turns.
        outputs: Shapes to give outputs that the graph gives in another one: by name, the free
            axes as -1 in both, the graph's first.
    """

    def __init__(
        self,
        sessions: Sequence[ort.InferenceSession],
        outputs: Mapping[str, tuple[Shape, Shape]] = MappingProxyType({}),
    ) -> None:
        self._sessions = sessions
        self._turns = itertools.cycle(sessions)
        self._runs = itertools.cycle([_run_of(session) for session in sessions])
        self._outputs = outputs
        first = sessions[0]
        try:
            self.signature = Signature.of(
                first.get_inputs(), first.get_outputs(), first.get_overridable_initializers()
            )
        except SignatureUnsupportedError as error:
            raise LoadFailedError(str(error)) from None
        tensors = (*self.signature.inputs.values(), *self.signature.outputs.values())
        self._is_numpy = all(tensor.datatype.is_numpy for tensor in tensors)
        texts = [t.name for t in self.signature.inputs.values() if t.datatype.is_bytes]
        if texts and not self._is_numpy:
            raise LoadFailedError(
                f"the graph has BF16 beside the BYTES input {texts[0]!r}; ONNX Runtime cannot be"
                " given both, so cast inside the graph"
            )

    def offering(self, signature: Signature) -> "Engine":
        """Return the engine with outputs as a model offers them, not as the graph has them."""
        reshaped = {
            tensor.name: (tensor.inner, tensor.shape)
            for tensor in signature.outputs.values()
            if tensor.inner is not None
        }
        return Engine(self._sessions, reshaped) if reshaped else self

    def run(
        self,
        feed: Mapping[str, Array],
        outputs: Sequence[str],
        options: ort.RunOptions | None = None,
    ) -> list[Array]:
        """Run once, on the calling thread.

        Args:
            feed: An array for every input.
            outputs: Names of what to compute.
            options: Its `terminate`, set by another thread, ends the run.

        Raises:
            RunFailedError: A node refuses the values it is given.
            RunEndedError: `options.terminate` was set.
        """
        try:
            if self._is_numpy:
                results: list[Array] = next(self._runs)(outputs, feed, options)
            else:
                session = next(self._turns)
                results = _run_values(session, outputs, feed, self.signature, options)
        except _DATA_FAULTS as error:
            raise RunFailedError(explained(error)) from None
        except _FAULTS.Fail as error:  # What a kernel reports, of values and of being told to stop.
            if options is not None and options.terminate:
                raise RunEndedError from None
            raise RunFailedError(explained(error)) from None
        if not self._outputs:
            return results
        return [self._reshaped(name, value) for name, value in zip(outputs, results, strict=True)]

    def _reshaped(self, name: str, value: Array) -> Array:
        if name not in self._outputs:
            return value
        inner, offered = self._outputs[name]
        return value.reshape(refitted(value.shape, inner, offered))


def _run_of(session: ort.InferenceSession) -> Callable[..., list[Array]]:
    """Return what runs it, below its wrapper if it has one.

    The wrapper asks again what signatures have answered, for a tenth of a short run, and would go
    on with another execution provider where the one that was asked for fails.
    """
    run: Callable[..., list[Array]] = getattr(session, "_sess", session).run
    return run


def _run_values(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    feed: Mapping[str, Array],
    signature: Signature,
    options: ort.RunOptions | None,
) -> list[Array]:
    """Run with types that NumPy does not have: their bits travel as unsigned integers."""
    tensors = {**signature.inputs, **signature.optional_inputs}
    arrays = {name: np.ascontiguousarray(array) for name, array in feed.items()}
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(array)
        if tensors[name].datatype.is_numpy
        else ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
        for name, array in arrays.items()  # The values are views of them.
    }
    return [
        _bits(value) if value.data_type() == BFLOAT16.onnx else value.numpy()
        for value in session.run_with_ort_values(outputs, values, options)
    ]


def _bits(value: ort.OrtValue) -> Array:
    shape = tuple(value.shape())
    count = math.prod(shape)
    if not count:
        return np.empty(shape, BFLOAT16.numpy)
    cells = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.array(cells, BFLOAT16.numpy).reshape(shape)


def explained(error: Exception) -> str:
    """The text of an ONNX Runtime error in one line, without places on this or another machine."""
    text = _ABSOLUTE_PATH.sub("…", " ".join(str(error).split()))
    return text[:_SHOWN_CHARACTERS]

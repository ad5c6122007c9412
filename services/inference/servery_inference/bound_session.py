"""A session whose tensors stay at places on its device that are made once for each batch size.

Nothing is allocated for a run, and on a GPU the kernels of a batch size can be recorded as one CUDA
graph and be launched together. It has the surface of a session that an engine uses. On a CPU it
costs more than it saves (see docs/adr); there it is for trying things out.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from servery_inference.datatypes import BY_ONNX
from servery_inference.request import Array

MAX_SIZES: Final = 16
"""Batch sizes that have places at the same time, where they are not chosen."""

_NO_GRAPH: Final = "-1"
_PYBIND: Final = ort.capi.onnxruntime_pybind11_state
_FAULTS: Final = (_PYBIND.Fail, _PYBIND.InvalidArgument, _PYBIND.RuntimeException)


class ShapesOpenError(Exception):
    """A graph has tensors whose places cannot be made before a run; the message says which."""


@dataclass(slots=True)
class _Places:
    """One batch size."""

    rows: int
    inputs: Mapping[str, ort.OrtValue]
    outputs: Mapping[str, ort.OrtValue]
    binding: Any
    graph: str
    is_busy: bool = False


class BoundSession:
    """See the module.

    Args:
        session: Of a graph whose tensors are numbers of known shapes, but for a first axis that
            may be free in all of them, by one name.
        device: `cuda` or `cpu`.
        device_id: Which.
        sizes: Batch sizes to record as CUDA graphs, rising: a batch is filled up to the next one
            with zeros. Empty: nothing is recorded, and batches are run as they are.

    Raises:
        ShapesOpenError: The graph is another one.
    """

    def __init__(
        self, session: ort.InferenceSession, device: str, device_id: int, sizes: Sequence[int] = ()
    ) -> None:
        self._session = session
        self._device = device, device_id
        self._inputs = {each.name: each for each in session.get_inputs()}
        self._outputs = {each.name: each for each in session.get_outputs()}
        self._is_batched = _check([*self._inputs.values(), *self._outputs.values()])
        self._sizes = tuple(sizes)
        self._places: OrderedDict[int, _Places] = OrderedDict()
        self._lock = threading.Lock()
        self._is_hopeless = False
        # ONNX Runtime keeps what it records by thread, and allows one run at a time meanwhile.
        self._recorder = ThreadPoolExecutor(1, "recorded-runs") if sizes else None
        self.get_inputs = session.get_inputs
        self.get_outputs = session.get_outputs
        self.get_overridable_initializers = session.get_overridable_initializers

    def run(
        self,
        names: Sequence[str] | None,
        feed: Mapping[str, Array],
        options: ort.RunOptions | None = None,
    ) -> list[Array]:
        """Run once, as a session does; from several threads at a time, if need be."""
        names = list(names or self._outputs)
        if self._recorder is not None:
            return self._recorder.submit(self._recorded, names, feed, options).result()
        rows = self._rows(feed)
        places = self._taken(rows) if self._fits(feed) else None
        if places is None:
            return self._unbound(names, feed, options)
        try:
            return self._bound(places, names, feed, rows, options)
        finally:
            places.is_busy = False

    def _fits(self, feed: Mapping[str, Array]) -> bool:
        """Whether there may be places for it: inputs that may be left out have none."""
        return not self._is_hopeless and feed.keys() == self._inputs.keys()

    def _rows(self, feed: Mapping[str, Array]) -> int:
        return len(next(iter(feed.values()))) if self._is_batched else 1

    def _unbound(
        self, names: Sequence[str], feed: Mapping[str, Array], options: ort.RunOptions | None
    ) -> list[Array]:
        results: list[Array] = self._session.run(names, feed, options)
        return results

    def _recorded(
        self, names: Sequence[str], feed: Mapping[str, Array], options: ort.RunOptions | None
    ) -> list[Array]:
        options = options or ort.RunOptions()
        rows = self._rows(feed)
        size = next((size for size in self._sizes if size >= rows), None)
        if size is None or not self._fits(feed):
            options.add_run_config_entry("gpu_graph_id", _NO_GRAPH)
            return self._unbound(names, feed, options)
        places = self._places.get(size) or self._make(size, str(self._sizes.index(size)))
        options.add_run_config_entry("gpu_graph_id", places.graph)
        return self._bound(places, names, feed, rows, options)

    def _taken(self, rows: int) -> _Places | None:
        """Take the places for a batch size; None if another run has them."""
        with self._lock:
            places = self._places.get(rows) or self._make(rows, _NO_GRAPH)
            if places.is_busy:
                return None
            places.is_busy = True
            self._places.move_to_end(rows)
            return places

    def _make(self, rows: int, graph: str) -> _Places:
        inputs = {name: self._place(each, rows) for name, each in self._inputs.items()}
        outputs = {name: self._place(each, rows) for name, each in self._outputs.items()}
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        if len(self._places) >= MAX_SIZES and self._recorder is None:
            self._places.popitem(last=False)
        self._places[rows] = _Places(rows, inputs, outputs, binding, graph)
        return self._places[rows]

    def _place(self, argument: Any, rows: int) -> ort.OrtValue:
        shape = [rows, *argument.shape[1:]] if self._is_batched else argument.shape
        dtype = BY_ONNX[argument.type].numpy
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, *self._device)

    def _bound(
        self,
        places: _Places,
        names: Sequence[str],
        feed: Mapping[str, Array],
        rows: int,
        options: ort.RunOptions | None,
    ) -> list[Array]:
        for name, value in places.inputs.items():
            value.update_inplace(_filled(np.ascontiguousarray(feed[name]), rows, places.rows))
        try:
            self._session.run_with_iobinding(places.binding, options)
        except (RuntimeError, *_FAULTS):
            results = self._unbound(names, feed, options)
            self._is_hopeless = True  # Outputs are not of the shapes that the graph declares.
            return results
        results = [places.outputs[name].numpy() for name in names]
        if self._device[0] == "cpu":  # Else they are copies.
            results = [result.copy() for result in results]
        return [result[:rows] if self._is_batched else result for result in results]


def _check(arguments: Sequence[Any]) -> bool:
    """Tell whether all tensors have a free first axis, which is the batch.

    Raises:
        ShapesOpenError: See `BoundSession`.
    """
    firsts = {str(each.shape[0]) for each in arguments if each.shape}
    is_batched = all(each.shape and isinstance(each.shape[0], str) for each in arguments)
    if is_batched and len(firsts) > 1:
        raise ShapesOpenError(f"the first axes {sorted(firsts)} may be of different sizes")
    for each in arguments:
        datatype = BY_ONNX.get(each.type)
        known = each.shape[1:] if is_batched else each.shape
        if datatype is None or datatype.is_bytes or not datatype.is_numpy:
            raise ShapesOpenError(f"{each.name[:100]!r} is {each.type}, which has no fixed size")
        if not all(isinstance(size, int) for size in known):
            raise ShapesOpenError(f"{each.name[:100]!r} has the shape {each.shape}")
    return is_batched


def _filled(array: Array, rows: int, size: int) -> Array:
    if rows == size:
        return array
    filled = np.zeros((size, *array.shape[1:]), array.dtype)
    filled[:rows] = array
    return filled

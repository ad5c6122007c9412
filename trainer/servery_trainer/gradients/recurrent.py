"""Writes LSTM and GRU operators as loops over simpler ones, which can be differentiated.

Shape suffixes of comments: T steps, B rows, H units, G gates.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from servery_trainer.gradients.emitter import Emitter, UnsupportedError
from servery_trainer.gradients.step import attributes

_INTEGER = onnx.TensorProto.INT64
_ODD = ("activation_alpha", "activation_beta", "clip", "input_forget", "layout")
_PLAIN = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"]}

Cell = Callable[[str, Sequence[str], Emitter], list[str]]
"""From the projected input [B, GH] and the states [B, H] to the next states, the first is given
out."""


def lowered(nodes: Sequence[onnx.NodeProto], emit: Emitter) -> list[onnx.NodeProto]:
    """Replace the LSTM and GRU operators among `nodes`.

    Raises:
        UnsupportedError: One is of a kind that is not known here.
    """
    result = list[onnx.NodeProto]()
    for node in nodes:
        if node.op_type in _PLAIN:
            written = emit.inner()
            _Layer(node, written).write()
            result += written.nodes
        else:
            result.append(node)
    return result


class _Layer:
    """One operator."""

    def __init__(self, node: onnx.NodeProto, emit: Emitter) -> None:
        self._node = node
        self._emit = emit
        options = attributes(node)
        self._kind = node.op_type
        self._units: int = options["hidden_size"]
        self._direction = options.get("direction", b"forward")
        self._reset_after = bool(options.get("linear_before_reset", 0))
        count = 2 if self._direction == b"bidirectional" else 1
        plain = _PLAIN[self._kind] * count
        lengths, peepholes = self._input(4), self._input(7)
        odd = [lengths, peepholes, *(options.get(name) for name in _ODD)]
        if any(odd) or options.get("activations", plain) != plain:
            raise UnsupportedError(f"an {self._kind} of this kind has no derivative here")
        steps, rows, _ = emit.shapes[node.input[0]]
        if steps is None or rows is None:
            raise UnsupportedError(f"the number of steps of an {self._kind} is not known")
        self._steps, self._rows = steps, rows

    def _input(self, place: int) -> str:
        return self._node.input[place] if place < len(self._node.input) else ""

    def write(self) -> None:
        """Write all directions, and the outputs under their names."""
        emit = self._emit
        backwards = {b"forward": [False], b"reverse": [True], b"bidirectional": [False, True]}
        found = [
            self._run(place, backward=backward)
            for place, backward in enumerate(backwards[self._direction])
        ]
        for place, output in enumerate(self._node.output):
            axis = 0 if place else 1
            parts = []
            for states in found:
                shape = list(emit.shapes[states[place]])
                shape.insert(axis, 1)
                axes = emit.integers(axis)
                parts.append(emit.add("Unsqueeze", states[place], axes, shape=tuple(shape)))
            if output:
                emit.nodes.append(helper.make_node("Concat", parts, [output], axis=axis))

    def _run(self, place: int, *, backward: bool) -> list[str]:
        """Write one direction; return all outputs [T, B, H], then the last states [B, H]."""
        emit, steps = self._emit, self._steps
        weights, recurrent = (emit.value(self._node.input[n], "a weight")[place].T for n in (1, 2))
        width = weights.shape[1]
        bias = np.zeros(2 * width, np.float32)
        if self._input(3):
            bias = emit.value(self._input(3), "a bias")[place]
        cell, extra = self._cell(recurrent, bias[width:])
        whole = (steps, self._rows, width)
        projected = emit.add("MatMul", self._node.input[0], emit.constant(weights), shape=whole)
        added = emit.constant(bias[:width] + extra)
        projected = emit.add("Add", projected, added, shape=whole)
        firsts = [self._first(n, place) for n in range(1 if self._kind == "GRU" else 2)]
        *lasts, scan = self._loop(projected, firsts, cell, backward=backward)
        if backward:
            order = emit.integers(*reversed(range(steps)))
            scan = emit.add("Gather", scan, order, shape=emit.shapes[scan], axis=0)
        return [scan, *lasts]

    def _first(self, number: int, place: int) -> str:
        shape = (self._rows, self._units)
        if given := self._input(5 + number):
            index = self._emit.constant(place, "int64")
            return self._emit.add("Gather", given, index, shape=shape, axis=0)
        return self._emit.add("ConstantOfShape", self._emit.integers(*shape), shape=shape)

    def _loop(
        self, projected: str, firsts: Sequence[str], cell: Cell, *, backward: bool
    ) -> list[str]:
        emit, shape = self._emit, (self._rows, self._units)
        inner = emit.inner()
        turn, goes_on, *states = (emit.name() for _ in range(2 + len(firsts)))
        emit.shapes |= {turn: (), goes_on: (), **dict.fromkeys(states, shape)}
        emit.types |= {turn: _INTEGER, goes_on: onnx.TensorProto.BOOL}
        step = turn
        if backward:
            last = emit.constant(self._steps - 1, "int64")
            step = inner.add("Sub", last, turn, shape=(), dtype=_INTEGER)
        width = emit.shapes[projected][2]
        now = inner.add("Gather", projected, step, shape=(self._rows, width), axis=0)
        nexts = cell(now, states, inner)
        results = [*nexts, inner.add("Identity", nexts[0], shape=shape)]
        value = helper.make_tensor_value_info
        later = inner.add("Identity", goes_on, shape=(), dtype=onnx.TensorProto.BOOL)
        body = helper.make_graph(
            inner.nodes,
            emit.name(),
            [
                value(turn, _INTEGER, []),
                value(goes_on, onnx.TensorProto.BOOL, []),
                *(value(state, onnx.TensorProto.FLOAT, shape) for state in states),
            ],
            [
                value(later, onnx.TensorProto.BOOL, []),
                *(value(name, onnx.TensorProto.FLOAT, shape) for name in results),
            ],
        )
        turns = emit.constant(self._steps, "int64")
        always = emit.constant(value=True, dtype=bool)
        shapes = [*(shape for _ in firsts), (self._steps, *shape)]
        return emit.several("Loop", [turns, always, *firsts], shapes, body=body)

    def _cell(self, recurrent: NDArray[Any], bias: NDArray[Any]) -> tuple[Cell, NDArray[Any]]:
        """Return what a step does, and what of the recurrent bias [GH] counts as of the input."""
        if self._kind == "LSTM":
            return self._lstm(recurrent), bias
        if self._reset_after:
            early, late = bias.copy(), bias.copy()
            early[2 * self._units :] = 0
            late[: 2 * self._units] = 0
            return self._gru_reset_after(recurrent, late), early
        return self._gru(recurrent), bias

    def _lstm(self, recurrent: NDArray[Any]) -> Cell:
        weights, shape = self._emit.constant(recurrent), (self._rows, self._units)

        def cell(now: str, states: Sequence[str], inner: Emitter) -> list[str]:
            hidden, carry = states
            gates = self._plus(now, hidden, weights, inner)
            opens = self._gates(gates, 4, inner)
            enter, leave, keep = (inner.add("Sigmoid", gate, shape=shape) for gate in opens[:3])
            fresh = inner.add("Tanh", opens[3], shape=shape)
            kept = inner.add("Mul", keep, carry, shape=shape)
            new = inner.add("Mul", enter, fresh, shape=shape)
            carry = inner.add("Add", kept, new, shape=shape)
            bounded = inner.add("Tanh", carry, shape=shape)
            return [inner.add("Mul", leave, bounded, shape=shape), carry]

        return cell

    def _gru_reset_after(self, recurrent: NDArray[Any], bias: NDArray[Any]) -> Cell:
        weights, late = self._emit.constant(recurrent), self._emit.constant(bias)
        shape = (self._rows, self._units)

        def cell(now: str, states: Sequence[str], inner: Emitter) -> list[str]:
            (hidden,) = states
            whole = inner.shapes[now]
            before = inner.add("MatMul", hidden, weights, shape=whole)
            before = inner.add("Add", before, late, shape=whole)
            here, there = self._gates(now, 3, inner), self._gates(before, 3, inner)
            update, reset = (
                inner.add("Sigmoid", inner.add("Add", a, b, shape=shape), shape=shape)
                for a, b in zip(here[:2], there[:2], strict=True)
            )
            past = inner.add("Mul", reset, there[2], shape=shape)
            return [self._mixed(update, past, here[2], hidden, inner)]

        return cell

    def _gru(self, recurrent: NDArray[Any]) -> Cell:
        first = self._emit.constant(recurrent[:, : 2 * self._units])
        second = self._emit.constant(recurrent[:, 2 * self._units :])
        shape = (self._rows, self._units)

        def cell(now: str, states: Sequence[str], inner: Emitter) -> list[str]:
            (hidden,) = states
            here = self._gates(now, 3, inner)
            both = inner.add("MatMul", hidden, first, shape=(self._rows, 2 * self._units))
            there = self._gates(both, 2, inner)
            update, reset = (
                inner.add("Sigmoid", inner.add("Add", a, b, shape=shape), shape=shape)
                for a, b in zip(here[:2], there, strict=True)
            )
            past = inner.add("Mul", reset, hidden, shape=shape)
            past = inner.add("MatMul", past, second, shape=shape)
            return [self._mixed(update, past, here[2], hidden, inner)]

        return cell

    def _mixed(self, update: str, past: str, here: str, hidden: str, inner: Emitter) -> str:
        """Return new + update * (hidden - new)."""
        shape = (self._rows, self._units)
        new = inner.add("Tanh", inner.add("Add", here, past, shape=shape), shape=shape)
        apart = inner.add("Sub", hidden, new, shape=shape)
        kept = inner.add("Mul", update, apart, shape=shape)
        return inner.add("Add", new, kept, shape=shape)

    def _plus(self, now: str, hidden: str, weights: str, inner: Emitter) -> str:
        before = inner.add("MatMul", hidden, weights, shape=inner.shapes[now])
        return inner.add("Add", now, before, shape=inner.shapes[now])

    def _gates(self, joined: str, count: int, inner: Emitter) -> list[str]:
        shapes = [(self._rows, self._units)] * count
        return inner.several("Split", [joined], shapes, axis=1, num_outputs=count)

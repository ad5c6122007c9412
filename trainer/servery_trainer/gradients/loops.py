"""The derivative of a loop: a loop back over what each turn started from.

Each turn is computed again from its recorded states, then differentiated (backpropagation through
time; Werbos, 1990).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx
from onnx import helper

from servery_trainer.gradients.emitter import Emitter, renamed
from servery_trainer.gradients.loop_parts import LoopParts, record
from servery_trainer.gradients.step import attributes, reads

Differentiate = Callable[
    [Sequence[onnx.NodeProto], Mapping[str, str], Sequence[str], Emitter], dict[str, str]
]
_FLOAT, _INTEGER, _BOOLEAN = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL,
)


def differentiate_loop(
    loop: onnx.NodeProto,
    told: Sequence[str | None],
    active: set[str],
    emit: Emitter,
    differentiate: Differentiate,
) -> Iterator[tuple[str, str]]:
    """See `step.Rule`; the loop gets further outputs, which record the states of each turn."""
    parts = LoopParts.of(loop, active)
    recorded = record(loop, parts, emit)
    return _Back(parts, recorded, told, emit, differentiate).run()


class _Back:
    """Writes the loop back."""

    def __init__(
        self,
        parts: LoopParts,
        recorded: dict[str, str],
        told: Sequence[str | None],
        emit: Emitter,
        differentiate: Differentiate,
    ) -> None:
        self._parts = parts
        self._recorded = recorded
        self._told = told
        self._emit = emit
        self._differentiate = differentiate
        self._inner = emit.inner()
        self._state_places = [n for n, s in enumerate(parts.states) if s in parts.smooth]

    def run(self) -> Iterator[tuple[str, str]]:
        """Write it; yield what is read from outside with its gradients."""
        emit, parts, inner = self._emit, self._parts, self._inner
        turns = self._turns()
        back_turn, goes_on = emit.name(), emit.name()
        names, now = self._again(back_turn, turns)
        nodes, names = renamed(parts.nodes, names, f"{emit.name()}/")
        self._shape_alike(names)
        inner.nodes += nodes
        states = [names[parts.states[place]] for place in self._state_places]
        picks, whole = self._outer(nodes)
        carried, sums = ([self._named_as(name) for name in group] for group in (states, whole))
        rest = [node for node in nodes if node.output[0] not in picks]
        seeds = self._seeds(names, carried, now)
        found = self._differentiate(rest, seeds, [*states, *picks, *whole], inner)
        added = [
            inner.add("Add", total, found[name], shape=emit.shapes[name])
            for name, total in zip(whole, sums, strict=True)
        ]
        firsts = [
            self._told[place] or emit.zeros(parts.firsts[place]) for place in self._state_places
        ]
        results = self._loop(
            turns,
            [back_turn, goes_on, *carried, *sums],
            [*firsts, *(emit.zeros(name) for name in whole)],
            [*(found[state] for state in states), *added],
            [name for pick, (_, at) in picks.items() for name in (found[pick], self._whole(at))],
        )
        read = [*(parts.firsts[place] for place in self._state_places), *whole]
        yield from zip(read, results, strict=False)
        single = results[len(read) :]
        for (source, _), gradients, places in zip(
            picks.values(), single[::2], single[1::2], strict=True
        ):
            yield source, self._scattered(source, gradients, places)

    def _named_as(self, model: str) -> str:
        """Return a new name for a tensor of the shape of another one."""
        name = self._emit.name()
        self._emit.shapes[name] = self._emit.shapes[model]
        return name

    def _turns(self) -> str:
        """Return how many turns there were, [1]."""
        record = self._recorded[self._parts.turn]
        return self._emit.add("Shape", record, shape=(1,), dtype=_INTEGER)

    def _again(self, back_turn: str, turns: str) -> tuple[dict[str, str], str]:
        """Fetch what the turn that is gone back over started from; return names and its number."""
        inner, parts = self._inner, self._parts
        one = self._emit.integers(1)
        left = inner.add("Sub", turns, one, shape=(1,), dtype=_INTEGER)
        left = inner.add("Sub", left, back_turn, shape=(1,), dtype=_INTEGER)
        scalar = self._emit.constant([], "int64")
        now = inner.add("Reshape", left, scalar, shape=(), dtype=_INTEGER)
        names = {parts.goes_on: self._emit.constant(value=True, dtype=bool)}
        for place, state in enumerate(parts.states):
            if place not in parts.varying:
                names[state] = parts.firsts[place]
        for name, states in self._recorded.items():
            element = self._emit.types.get(name, _FLOAT)
            shape = self._emit.shapes[name]
            names[name] = inner.add("Gather", states, now, shape=shape, dtype=element, axis=0)
        return names, now

    def _shape_alike(self, names: Mapping[str, str]) -> None:
        for name, copy in names.items():
            if name in self._emit.shapes:
                self._emit.shapes[copy] = self._emit.shapes[name]
            if name in self._emit.types:
                self._emit.types[copy] = self._emit.types[name]

    def _outer(
        self, nodes: Sequence[onnx.NodeProto]
    ) -> tuple[dict[str, tuple[str, str]], list[str]]:
        """Find what is read from outside: one step of a tensor (source, place), or all of it."""
        outer = set(self._parts.outer)
        picks: dict[str, tuple[str, str]] = {}
        others: set[str] = set()
        for node in nodes:
            scalar = node.op_type == "Gather" and self._emit.shapes.get(node.input[1]) == ()
            if scalar and node.input[0] in outer and attributes(node).get("axis", 0) == 0:
                picks[node.output[0]] = (node.input[0], node.input[1])
            else:
                others |= reads(node) & outer
        return picks, sorted(others)

    def _seeds(self, names: Mapping[str, str], carried: Sequence[str], now: str) -> dict[str, str]:
        inner, parts = self._inner, self._parts
        pairs = [
            (names[parts.nexts[place]], gradient)
            for place, gradient in zip(self._state_places, carried, strict=True)
        ]
        for scan, told in zip(parts.scans, self._told[len(parts.states) :], strict=False):
            if told:
                shape = self._emit.shapes[scan]
                gathered = inner.add("Gather", told, now, shape=shape, axis=0)
                pairs.append((names[scan], gathered))
        seeds: dict[str, str] = {}
        for name, gradient in pairs:
            if name in seeds:
                shape = self._emit.shapes[name]
                seeds[name] = inner.add("Add", seeds[name], gradient, shape=shape)
            else:
                seeds[name] = gradient
        return seeds

    def _whole(self, place: str) -> str:
        return self._inner.add("Cast", place, shape=(), dtype=_INTEGER, to=_INTEGER)

    def _loop(
        self,
        turns: str,
        inputs: Sequence[str],
        firsts: Sequence[str],
        nexts: Sequence[str],
        scans: Sequence[str],
    ) -> list[str]:
        emit, inner = self._emit, self._inner
        goes_on = inner.name()
        inner.nodes.append(helper.make_node("Identity", [inputs[1]], [goes_on]))
        outputs = []
        for name in [*nexts, *scans]:  # each output of a body has a name of its own
            copy = inner.name()
            inner.nodes.append(helper.make_node("Identity", [name], [copy]))
            outputs.append(copy)
        value = helper.make_tensor_value_info
        elements = [_INTEGER, _BOOLEAN, *([_FLOAT] * len(nexts))]
        places = [_INTEGER if n % 2 else _FLOAT for n in range(len(scans))]
        kinds = [_FLOAT] * len(nexts) + places
        ranked = zip(inputs, elements, strict=True)
        body = helper.make_graph(
            inner.nodes,
            emit.name(),
            [
                value(name, element, [] if n < 2 else None)
                for n, (name, element) in enumerate(ranked)
            ],
            [
                value(goes_on, _BOOLEAN, []),
                *(value(name, kind, None) for name, kind in zip(outputs, kinds, strict=True)),
            ],
        )
        count = emit.add("Reshape", turns, emit.constant([], "int64"), shape=(), dtype=_INTEGER)
        shapes = [emit.shapes[name] for name in nexts]
        shapes += [(None, *emit.shapes[name]) for name in scans]
        condition = emit.constant(value=True, dtype=bool)
        return emit.several("Loop", [count, condition, *firsts], shapes, body=body)

    def _scattered(self, source: str, gradients: str, places: str) -> str:
        """Put the gradients of single steps, [turn, ...] each, where the steps were taken from."""
        emit = self._emit
        column = emit.add("Unsqueeze", places, emit.integers(1), shape=(None, 1), dtype=_INTEGER)
        zeros = emit.zeros(source)
        shape = emit.shapes[source]
        return emit.add("ScatterND", zeros, column, gradients, shape=shape, reduction="add")

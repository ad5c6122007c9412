"""A loop taken apart, and made to tell what each turn started from."""

from dataclasses import dataclass
from typing import Self

import onnx
from onnx import helper

from servery_trainer.gradients.emitter import Emitter, UnsupportedError
from servery_trainer.gradients.step import attributes, dependent, reads


@dataclass(frozen=True, slots=True)
class LoopParts:
    """A loop, taken apart."""

    nodes: list[onnx.NodeProto]
    turn: str
    goes_on: str
    states: list[str]
    """Names in the body of what is carried from turn to turn."""
    nexts: list[str]
    """Names in the body of what these become."""
    scans: list[str]
    """Names in the body of what each turn gives out."""
    firsts: list[str]
    """Names outside of what the states are at first."""
    smooth: set[str]
    """States whose gradient is asked for."""
    outer: list[str]
    """Tensors from outside whose gradient is asked for."""

    @classmethod
    def of(cls, loop: onnx.NodeProto, active: set[str]) -> Self:
        """Take a loop apart, of which some tensors from outside are `active`.

        Raises:
            UnsupportedError: There is another loop inside.
        """
        body: onnx.GraphProto = attributes(loop)["body"]
        if any(node.op_type in ("If", "Loop", "Scan") for node in body.node):
            raise UnsupportedError("a loop in a loop has no derivative here")
        turn, goes_on, *states = [value.name for value in body.input]
        nexts = [value.name for value in body.output][1:]
        nodes, firsts = list(body.node), list(loop.input[2:])
        read = set().union(*(reads(node) for node in nodes))
        outer = sorted(read & active)
        pairs = list(zip(states, nexts, firsts, strict=False))
        smooth = {state for state, _, first in pairs if first in active}
        while True:  # until no further state depends on those known to
            reached = dependent(nodes, [*smooth, *outer])
            more = {state for state, later, _ in pairs if later in reached} - smooth
            if not more:
                break
            smooth |= more
        return cls(
            nodes=nodes,
            turn=turn,
            goes_on=goes_on,
            states=states,
            nexts=nexts[: len(states)],
            scans=nexts[len(states) :],
            firsts=firsts,
            smooth=smooth,
            outer=outer,
        )

    @property
    def varying(self) -> list[int]:
        """Places of the states that are not the same in all turns."""
        pairs = enumerate(zip(self.states, self.nexts, strict=True))
        return [place for place, (state, later) in pairs if state != later]


def record(loop: onnx.NodeProto, parts: LoopParts, emit: Emitter) -> dict[str, str]:
    """Have the loop give out the turn and the states each turn starts from; return their names."""
    (body,) = (each.g for each in loop.attribute if each.name == "body")
    names = [parts.turn, *(parts.states[place] for place in parts.varying)]
    recorded = {}
    for name in names:
        copy, output = emit.name(), emit.name()
        body.node.append(helper.make_node("Identity", [name], [copy]))
        element = emit.types.get(name, onnx.TensorProto.FLOAT)
        body.output.append(helper.make_tensor_value_info(copy, element, None))
        loop.output.append(output)
        emit.shapes[output] = (None, *emit.shapes[name])
        emit.types[output] = element
        recorded[name] = output
    return recorded

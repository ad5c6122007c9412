"""The reverse pass: from the gradient of what a graph makes to that of what it is given."""

from collections.abc import Mapping, Sequence

import onnx

from servery_trainer.gradients import elementwise, layers, loops, rearranging
from servery_trainer.gradients.emitter import Emitter, UnsupportedError
from servery_trainer.gradients.step import Rule, Step, dependent

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **layers.RULES,
    **rearranging.RULES,
}


def differentiate(
    nodes: Sequence[onnx.NodeProto],
    seeds: Mapping[str, str],
    points: Sequence[str],
    emit: Emitter,
) -> dict[str, str]:
    """Write nodes that compute vector-Jacobian products.

    Args:
        nodes: In the order in which they run; loops among them get further outputs.
        seeds: The gradient of each tensor that is differentiated, by name.
        points: By what to differentiate.
        emit: Gets the nodes, which are to run after `nodes`; knows the shapes of all tensors.

    Returns:
        The name of the gradient by each point; of points that change nothing, zeros.

    Raises:
        UnsupportedError: An operator on the way has no rule.
    """
    active = dependent(nodes, points)
    gradients = dict(seeds)
    for node in reversed(nodes):
        told = [gradients.get(output) for output in node.output]
        if not any(told) or not any(output in active for output in node.output):
            continue
        if node.op_type == "Loop":
            found = list(loops.differentiate_loop(node, told, active, emit, differentiate))
        elif node.op_type in RULES:
            found = list(RULES[node.op_type](Step(node, told, active, emit)))
        else:
            raise UnsupportedError(f"the operator {node.op_type} has no derivative here")
        for name, gradient in found:
            if name in gradients:
                shape = emit.shapes[name]
                gradient = emit.add("Add", gradients[name], gradient, shape=shape)
            gradients[name] = gradient
    return {point: gradients.get(point) or emit.zeros(point) for point in points}

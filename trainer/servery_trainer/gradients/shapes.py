"""The shapes and types of all tensors of a graph, those inside of loops too."""

from collections.abc import Sequence

import onnx
from onnx import helper, numpy_helper

from servery_trainer.gradients.emitter import Emitter, UnsupportedError
from servery_trainer.gradients.step import attributes, reads


def infer(nodes: Sequence[onnx.NodeProto], given: Sequence[str], emit: Emitter, opset: int) -> None:
    """Tell `emit` the shapes and types of what nodes make.

    Args:
        nodes: In the order in which they run.
        given: Tensors they start from beside constants; `emit` knows their shapes.
        emit: Knows the constants; gets the rest.
        opset: Version of the operators.

    Raises:
        UnsupportedError: What a loop works on has no known shape.
    """
    known, block = list(given), list[onnx.NodeProto]()
    for node in [*nodes, None]:
        if node is not None and node.op_type != "Loop":
            block.append(node)
            continue
        known += _infer_block(block, known, emit, opset)
        block = []
        if node is not None:
            _infer_loop(node, known, emit, opset)
            known += node.output


def _infer_block(
    nodes: Sequence[onnx.NodeProto], given: Sequence[str], emit: Emitter, opset: int
) -> list[str]:
    made = [name for node in nodes for name in node.output if name]
    read = {name for node in nodes for name in reads(node)}
    graph = helper.make_graph(
        nodes,
        "block",
        [_declared(name, emit) for name in given if name in read],
        [],
        [emit.constants[name] for name in read & emit.constants.keys()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in found.graph.value_info:
        tensor = value.type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT:
            emit.types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            emit.shapes[value.name] = tuple(
                each.dim_value if each.HasField("dim_value") else None for each in tensor.shape.dim
            )
    return made


def _declared(name: str, emit: Emitter) -> onnx.ValueInfoProto:
    element = emit.types.get(name, onnx.TensorProto.FLOAT)
    return helper.make_tensor_value_info(name, element, emit.shapes.get(name))


def _infer_loop(loop: onnx.NodeProto, known: Sequence[str], emit: Emitter, opset: int) -> None:
    """The states of a loop that can be differentiated keep their shapes."""
    body: onnx.GraphProto = attributes(loop)["body"]
    turn, goes_on, *states = (value.name for value in body.input)
    integer, boolean = onnx.TensorProto.INT64, onnx.TensorProto.BOOL
    emit.shapes |= {turn: (), goes_on: ()}
    emit.types |= {turn: integer, goes_on: boolean}
    for state, first in zip(states, loop.input[2:], strict=True):
        _alike(state, first, emit)
    infer(body.node, [*known, turn, goes_on, *states], emit, opset)
    made = [value.name for value in body.output][1:]
    for output, name in zip(loop.output, made, strict=True):
        _alike(output, name, emit)
    for output, first in zip(loop.output, loop.input[2:], strict=False):
        _alike(output, first, emit)
    turns = _turns(loop, emit)
    for output in loop.output[len(states) :]:
        emit.shapes[output] = (turns, *emit.shapes[output])


def _alike(name: str, model: str, emit: Emitter) -> None:
    if model not in emit.shapes:
        raise UnsupportedError("what a loop works on has a shape that is not known")
    emit.shapes[name] = emit.shapes[model]
    if model in emit.types:
        emit.types[name] = emit.types[model]


def _turns(loop: onnx.NodeProto, emit: Emitter) -> int | None:
    if loop.input[0] not in emit.constants:
        return None
    return int(numpy_helper.to_array(emit.constants[loop.input[0]]))


def constants_of(graph: onnx.GraphProto, emit: Emitter) -> list[onnx.NodeProto]:
    """Tell `emit` the constants of a graph and of its loops; return its other nodes."""
    rest = []
    for node in graph.node:
        if node.op_type == "Constant" and (value := attributes(node).get("value")) is not None:
            value.name = node.output[0]
            _learn(value, emit)
            continue
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inner = constants_of(attribute.g, emit)
                del attribute.g.node[:]
                attribute.g.node.extend(inner)
                del attribute.g.initializer[:]
        rest.append(node)
    for tensor in graph.initializer:
        _learn(tensor, emit)
    return rest


def _learn(tensor: onnx.TensorProto, emit: Emitter) -> None:
    known = onnx.TensorProto()
    known.CopyFrom(tensor)
    emit.constants[known.name] = known
    emit.shapes[known.name] = tuple(known.dims)
    if known.data_type != onnx.TensorProto.FLOAT:
        emit.types[known.name] = known.data_type

"""One graph, one file: the converter numbers names differently in each process."""

import re
from typing import Final

import onnx

_NUMBERED: Final = re.compile(r"(const_\w+)?__\d+(?=$|:\d+$)")
_NUMBERED_CONSTANT: Final = re.compile(r"[^/]*__\d+(?=$|:\d+$)")
"""Of equal constants the converter keeps any one, so what it is called for says nothing."""


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with constants and inner names numbered in the order of their first use.

    Inputs, outputs and names without a number of the converter keep their names.
    """
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    graph = renamed.graph
    names: dict[str, str] = {value.name: value.name for value in (*graph.input, *graph.output)}
    taken = set(names)
    constants = {tensor.name for tensor in graph.initializer}

    def rename(name: str) -> str:
        if name not in names:
            number = len(names)
            numbered = _NUMBERED_CONSTANT if name in constants else _NUMBERED
            while (new := numbered.sub(f"__{number}", name)) in taken and new != name:
                number += 1
            names[name] = new
            taken.add(new)
        return names[name]

    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [rename(tensor) for tensor in tensors]
    for index, node in enumerate(graph.node):
        node.name = _NUMBERED.sub(f"__{index}", node.name)
    for tensor in graph.initializer:
        tensor.name = rename(tensor.name)
    order = {name: index for index, name in enumerate(names.values())}
    ordered = sorted(graph.initializer, key=lambda tensor: order[tensor.name])
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    return renamed

"""A look through the bytes of an ONNX file before any library makes sense of them.

Reads the protobuf wire format by the field numbers of onnx.proto, without building messages, so
that neither the depth nor the size of a file costs memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

MAX_NODES: Final = 100_000
DOMAINS: Final = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
"""Domains of operators that ONNX Runtime brings itself."""

_SHOWN_CHARACTERS: Final = 100
_EXTERNAL: Final = 1
_FIXED_BYTES: Final = {1: 8, 5: 4}
_LENGTH_DELIMITED: Final = 2
_MAX_VARINT_BITS: Final = 70

_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
"""The fields of each message that hold messages which matter here."""

_TEXTS: Final[Mapping[str, Mapping[int, str]]] = {
    "Function": {1: "name", 10: "domain"},
    "Node": {4: "op_type", 7: "domain"},
    "Tensor": {8: "name"},
    "Entry": {1: "key", 2: "value"},
}
_DATA_LOCATION: Final = 14


class GraphRefusedError(Exception):
    """The graph is not admitted; the message says why, as words that follow "the graph"."""


@dataclass(slots=True)
class GraphFacts:
    """What was found in a graph."""

    num_nodes: int = 0
    operators: set[tuple[str, str]] = field(default_factory=set)
    """Domain and type of every node."""

    functions: set[tuple[str, str]] = field(default_factory=set)
    """Domain and name of every function that the file itself defines."""

    external_files: set[str] = field(default_factory=set)
    """Where tensors are that are not in the file."""


def walk(data: memoryview) -> GraphFacts:
    """Visit every node and tensor of a serialized `onnx.ModelProto`, however deep.

    Raises:
        GraphRefusedError: It is none, or something in it is not allowed.
    """
    facts = GraphFacts()
    waiting: list[tuple[str, int, int]] = [("Model", 0, len(data))]
    has_graph = False
    while waiting:
        kind, at, end = waiting.pop()
        has_graph = has_graph or kind == "Graph"
        texts: dict[str, str] = {}
        inner, texts_of = _MESSAGES[kind], _TEXTS.get(kind, {})
        while at < end:
            tag, at = _varint(data, at, end)
            number, wire = tag >> 3, tag & 7
            if wire == _LENGTH_DELIMITED:
                length, at = _varint(data, at, end)
                if at + length > end:
                    raise GraphRefusedError("is not an ONNX file, or it is cut off")
                if number in inner:
                    waiting.append((inner[number], at, at + length))
                elif number in texts_of:
                    texts[texts_of[number]] = bytes(data[at : at + min(length, 4096)]).decode(
                        errors="replace"
                    )
                at += length
            elif wire == 0:
                value, at = _varint(data, at, end)
                if kind == "Tensor" and number == _DATA_LOCATION and value == _EXTERNAL:
                    texts["external"] = "1"
            elif wire in _FIXED_BYTES:
                at += _FIXED_BYTES[wire]
            else:
                raise GraphRefusedError("is not an ONNX file")
        if at > end:
            raise GraphRefusedError("is not an ONNX file, or it is cut off")
        _take_in(kind, texts, facts)
    if not has_graph:
        raise GraphRefusedError("is not an ONNX file, or it is empty")
    _check(facts)
    return facts


def _take_in(kind: str, texts: Mapping[str, str], facts: GraphFacts) -> None:
    if kind == "Node":
        facts.num_nodes += 1
        if facts.num_nodes > MAX_NODES:
            raise GraphRefusedError(f"has more than {MAX_NODES} nodes")
        facts.operators.add((texts.get("domain", ""), texts.get("op_type", "")))
    elif kind == "Function":
        facts.functions.add((texts.get("domain", ""), texts.get("name", "")))
    elif kind == "Entry" and texts.get("key") == "location":
        facts.external_files.add(texts.get("value", ""))


def _check(facts: GraphFacts) -> None:
    for domain, name in sorted(facts.operators - facts.functions):
        if domain not in DOMAINS:
            raise GraphRefusedError(
                f"uses the operator {name[:_SHOWN_CHARACTERS]!r} of the domain"
                f" {domain[:_SHOWN_CHARACTERS]!r}; custom operators are not offered"
            )
    for location in sorted(facts.external_files):
        path = PurePosixPath(location)
        if not location or path.is_absolute() or ".." in path.parts or "\0" in location:
            raise GraphRefusedError(
                f"has tensors in {location[:_SHOWN_CHARACTERS]!r}; they may only be in files of the"
                " folder of the version"
            )


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _MAX_VARINT_BITS, 7):
        if at >= end:
            raise GraphRefusedError("is not an ONNX file, or it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise GraphRefusedError("is not an ONNX file")

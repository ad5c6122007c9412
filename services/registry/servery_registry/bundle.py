"""The required files of a bundle, and its signature: docs/reference/bundle.md in code."""

import json
from dataclasses import dataclass
from typing import Any, Final, Self

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import ServeryError

GRAPH: Final = "model.onnx"
SIGNATURE: Final = "signature.json"
GOLDEN: Final = "golden.npz"
REQUIRED: Final = (GRAPH, SIGNATURE, GOLDEN)
EXPLANATION: Final = "explain.onnx"
OPENED: Final = (*REQUIRED, EXPLANATION)
"""Files that are read for what they say; tensors of a graph are in none of them."""

DTYPES: Final = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""NumPy's name of each datatype of the Open Inference Protocol but BYTES, which is text here."""

_MAX_SIGNATURE_BYTES: Final = 1024 * 1024


class BundleInvalidError(ServeryError):
    """A file of a bundle, other than the graph, is missing or malformed."""

    reason = reasons.ERROR_REASON_BUNDLE_INVALID

    def __init__(self, file: str, problem: str) -> None:
        """Build it with a `problem` that follows the name of the file: "is …", "lacks …"."""
        super().__init__(f"{file} {problem}", file=file, problem=problem)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output."""

    name: str
    datatype: str
    """Of the Open Inference Protocol, such as `FP32` or `BYTES`."""

    shape: tuple[int, ...]
    """-1 where a size is open."""

    @classmethod
    def parse(cls, entry: Any) -> Self:
        """Read a tensor from decoded JSON.

        Raises:
            ValueError: What is wrong, as words that follow the name of the tensor's list.
        """
        if not isinstance(entry, dict):
            raise ValueError("must hold objects")
        name, datatype, shape = (entry.get(key) for key in ("name", "datatype", "shape"))
        if not isinstance(name, str) or not name:
            raise ValueError("has an entry without a name")
        if datatype != "BYTES" and (not isinstance(datatype, str) or datatype not in DTYPES):
            raise ValueError(f"{name!r} has the unknown datatype {str(datatype)[:20]!r}")
        if not isinstance(shape, list) or not all(
            type(size) is int and (size > 0 or size == -1) for size in shape
        ):
            raise ValueError(f"{name!r} has a shape that is not a list of sizes or -1")
        return cls(name, datatype, tuple(shape))


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a graph."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    explanation: tuple[Tensor, ...] = ()
    """What the graph gives that explains the outputs of this one; empty if there is none."""

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read `signature.json`.

        Raises:
            BundleInvalidError: It is not as docs/reference/bundle.md says.
        """
        if len(text) > _MAX_SIGNATURE_BYTES:
            raise BundleInvalidError(SIGNATURE, f"is larger than {_MAX_SIGNATURE_BYTES} bytes")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise BundleInvalidError(SIGNATURE, "is not JSON") from None
        if not isinstance(document, dict) or not isinstance(document.get("task"), str):
            raise BundleInvalidError(SIGNATURE, "is not an object with the text `task`")
        try:
            signature = cls(
                parse_tensors("inputs", document.get("inputs")),
                parse_tensors("outputs", document.get("outputs")),
                _parse_explanation(document.get("explanation")),
            )
        except ValueError as error:
            raise BundleInvalidError(SIGNATURE, str(error)) from None
        for tensor in (*signature.inputs, *signature.outputs, *signature.explanation):
            if tensor.shape[:1] != (-1,):
                raise BundleInvalidError(
                    SIGNATURE, f"gives {tensor.name!r} a shape whose first axis is not -1"
                )
        return signature


def _parse_explanation(document: Any) -> tuple[Tensor, ...]:
    if document is None:
        return ()
    if not isinstance(document, dict):
        raise ValueError("has an `explanation` that is not an object")
    return parse_tensors("explanation.outputs", document.get("outputs"))


def parse_tensors(kind: str, entries: Any) -> tuple[Tensor, ...]:
    """Read the list `kind`, such as `inputs`, from decoded JSON.

    Raises:
        ValueError: What is wrong, as words that follow the name of the file.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"lacks a list `{kind}` with at least one entry")
    try:
        tensors = tuple(Tensor.parse(entry) for entry in entries)
    except ValueError as error:
        raise ValueError(f"is wrong in `{kind}`: it {error}") from None
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError(f"names a tensor twice in `{kind}`")
    return tensors


def check_signature(signature: Signature, graph: Signature) -> None:
    """Refuse a signature that is not that of the graph.

    Where the graph leaves a size open, the signature may state it.

    Raises:
        BundleInvalidError: The first difference.
    """
    for kind, stated, real in (
        ("inputs", signature.inputs, graph.inputs),
        ("outputs", signature.outputs, graph.outputs),
    ):
        of_graph = {tensor.name: tensor for tensor in real}
        if of_graph.keys() != {tensor.name for tensor in stated}:
            raise BundleInvalidError(
                SIGNATURE,
                f"names other {kind} than the graph, which has {', '.join(sorted(of_graph))[:200]}",
            )
        for tensor in stated:
            if not fits(tensor, of_graph[tensor.name]):
                other = of_graph[tensor.name]
                raise BundleInvalidError(
                    SIGNATURE,
                    f"says that {tensor.name!r} is {tensor.datatype} {list(tensor.shape)}, but in"
                    f" the graph it is {other.datatype} {list(other.shape)}",
                )


def check_explanation(stated: Signature, model: Signature, explanation: Signature) -> None:
    """Refuse a graph that explains other inputs than the model takes, or is not as stated.

    Args:
        stated: What `signature.json` says.
        model: Of the graph of the model.
        explanation: Of the graph that explains.

    Raises:
        BundleInvalidError: The first difference.
    """
    if set(explanation.inputs) != set(model.inputs):
        raise BundleInvalidError(EXPLANATION, f"takes other inputs than {GRAPH}")
    if not stated.explanation:
        raise BundleInvalidError(
            SIGNATURE, f"does not say in `explanation` what {EXPLANATION} gives"
        )
    check_signature(Signature(stated.inputs, stated.explanation), explanation)


def fits(stated: Tensor, real: Tensor) -> bool:
    """Tell whether `stated` is `real`, or says more where `real` leaves a size open."""
    return (
        stated.datatype == real.datatype
        and len(stated.shape) == len(real.shape)
        and all(there in (-1, here) for here, there in zip(stated.shape, real.shape, strict=True))
    )

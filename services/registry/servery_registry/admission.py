"""The throw-away process that opens a bundle first: `python -m servery_registry.admission DIR`.

It limits itself, checks the signature and the golden rows, walks the graphs, loads them in ONNX
Runtime, and prints one JSON object: empty if all is well, else `problem` in words, with `file`, or
with `graph` if one is refused. Whatever a file does to this process, the registry lives.
"""

import argparse
import json
import os
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from servery_registry.bundle import Signature, Tensor

_MAX_NODES: Final = 20_000
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_MAX_WORDS: Final = 250
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_SOURCE: Final = re.compile(r"\S*/\S*\.(?:cc|cpp|h|py)(?::\d+)?\s*|\S+\.(?:cc|cpp|h):\d+\s*")


class RefusedError(Exception):
    """The graph is not admitted; the message says why, as words that follow "the graph"."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check one bundle and print the verdict; the exit status is 0 whenever there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--cpu-s", type=int, required=True)
    args = parser.parse_args(argv)
    _limit(args.memory_bytes, args.cpu_s)
    sys.stdout.write(json.dumps(_verdict(args.directory)))
    sys.stdout.flush()
    os._exit(0)  # Not through the destructors of a graph that may have broken the heap.


def _limit(memory_bytes: int, cpu_s: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),  # No byte of any file can be written.
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _verdict(directory: Path) -> dict[str, str]:
    # Imported under the limits, and not by the registry, which reads the constants above only.
    from servery_registry.bundle import (
        EXPLANATION,
        GOLDEN,
        GRAPH,
        SIGNATURE,
        BundleInvalidError,
        Signature,
        check_explanation,
        check_signature,
    )
    from servery_registry.golden import check_golden

    opened = GRAPH
    try:
        signature = Signature.parse((directory / SIGNATURE).read_bytes())
        check_golden(directory / GOLDEN, signature)
        model = inspect_graph(directory / GRAPH)
        check_signature(signature, model)
        if (directory / EXPLANATION).exists():
            opened = EXPLANATION
            check_explanation(signature, model, inspect_graph(directory / EXPLANATION))
        elif signature.explanation:
            raise BundleInvalidError(EXPLANATION, f"is not there, but {SIGNATURE} describes it")
    except BundleInvalidError as error:
        return {key: value[:_MAX_WORDS] for key, value in error.metadata.items()}
    except RefusedError as error:
        return {"problem": str(error), "graph": opened}
    except (MemoryError, RecursionError):
        return {"problem": "needs more memory to be read than this server allows"}
    return {}


def inspect_graph(path: Path) -> "Signature":
    """Return the inputs and outputs of an ONNX graph after loading it.

    Args:
        path: Of the graph; the other files of its bundle lie beside it.

    Raises:
        RefusedError: It is not one that this server would load.
    """
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError

    from servery_registry.bundle import OPENED, Signature

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise RefusedError("is not an ONNX file") from None
    if not model.HasField("graph"):
        raise RefusedError("is not an ONNX file, or it is empty")
    beside = {file.name: file.stat().st_size for file in path.parent.iterdir()}
    walk(model, {name: size for name, size in beside.items() if name not in OPENED})
    initialized = {tensor.name for tensor in model.graph.initializer}
    signature = Signature(
        tuple(_tensor(v) for v in model.graph.input if v.name not in initialized),
        tuple(_tensor(v) for v in model.graph.output),
    )
    del model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        onnx.checker.check_model(path)
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime's errors share no narrower base.
        text = str(error).replace(f"{path.parent}{os.sep}", "")
        raise RefusedError(f"cannot be loaded: {words(text)}") from None
    return signature


def walk(model: Any, files: Mapping[str, int]) -> None:
    """Visit every node and tensor of an `onnx.ModelProto`, however deep.

    By reflection, so that no field that holds tensors can be forgotten.

    Args:
        model: The graph.
        files: Bytes of each file that tensors may be in, by name.

    Raises:
        RefusedError: Something in it is not allowed.
    """
    import onnx

    num_nodes = 0
    waiting: list[Any] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):  # Its other fields are numbers: not read here.
            if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
                _check_place(message, files)
            continue
        if isinstance(message, onnx.NodeProto):
            num_nodes += 1
            if num_nodes > _MAX_NODES:
                raise RefusedError(f"has more than {_MAX_NODES} nodes")
        if (
            isinstance(message, onnx.NodeProto | onnx.OperatorSetIdProto)
            and message.domain not in _DOMAINS
        ):
            raise RefusedError(
                f"uses operators of the domain {message.domain[:100]!r}; allowed are the"
                " standard ones, ai.onnx.ml and com.microsoft"
            )
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend(value if field.is_repeated else [value])


def _check_place(tensor: Any, files: Mapping[str, int]) -> None:
    """Refuse a tensor that is in a file, unless the bundle holds that file and all of the tensor.

    Names are compared as they are: nothing that would have to be resolved is one.
    """
    place = {entry.key: entry.value for entry in tensor.external_data}
    location = place.get("location", "")
    is_ambiguous = len(place) < len(tensor.external_data)
    if location not in files or is_ambiguous:
        raise RefusedError(
            f"has the tensor {tensor.name[:100]!r} in {location[:100]!r}; tensors may be in the"
            " graph itself, or in a file that the bundle lists beside it, named without any folder"
        )
    numbers = [place.get(key, "0") for key in ("offset", "length")]
    if (
        not all(_NUMBER.fullmatch(number) for number in numbers)
        or sum(map(int, numbers)) > files[location]
    ):
        raise RefusedError(
            f"has the tensor {tensor.name[:100]!r} beyond the end of {location[:100]!r}"
        )


def words(text: str) -> str:
    """Return what a library says in one line, without the places in its source."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return " ".join(_SOURCE.sub("", text).split())[:_MAX_WORDS]


def _tensor(value: Any) -> "Tensor":
    import onnx

    from servery_registry.bundle import DTYPES, Tensor

    name = value.name[:100]
    if not value.type.HasField("tensor_type"):
        raise RefusedError(f"has {name!r} as an input or output that is not a tensor")
    of = value.type.tensor_type
    names = {getattr(onnx.TensorProto, _ONNX_NAMES.get(d, d)): d for d in (*DTYPES, "BYTES")}
    if of.elem_type not in names:
        raise RefusedError(f"has {name!r} in a data type that cannot go over the wire")
    if not of.HasField("shape"):
        raise RefusedError(f"does not say how many axes {name!r} has")
    return Tensor(
        value.name,
        names[of.elem_type],
        tuple(d.dim_value if d.HasField("dim_value") else -1 for d in of.shape.dim),
    )


_ONNX_NAMES: Final = {"FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}


if __name__ == "__main__":
    sys.exit(main())

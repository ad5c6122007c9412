"""The operator tests of the ONNX project, and what ONNX Runtime makes of them in this process.

They travel in the `onnx` package: a graph, inputs and the outputs to expect of each. The reference
runtime decides what a server on ONNX Runtime can be asked for; nothing here knows the server.
"""

import ctypes
import importlib
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case import node
from onnx.backend.test.runner import Runner

from tests.inference.graphs import Array

DATA: Final = Path(onnx.__file__).parent / "backend" / "test" / "data"
FOLDERS: Final = ("simple", "pytorch-converted", "pytorch-operator")
"""Kinds with models and data in the package."""

NETWORKS: Final = (
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
)
"""Those of kind `light` that need less than 200 MB each: not AlexNet, VGG and ZFNet."""

_CARRIED: Final = {
    f"tensor({name})"
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float", "double", "string"),
    )
}
_FATAL: Final = 4


class Verdict(Enum):
    """Whether a case can be asked of a server, and why not."""

    SERVABLE = "can be served"
    NO_DATATYPE = "no datatype in the protocol"
    NOT_IN_RUNTIME = "not supported by ONNX Runtime"
    DIFFERS_IN_RUNTIME = "ONNX Runtime answers something else"


@dataclass(frozen=True, slots=True)
class Case:
    """One operator test."""

    name: str
    graph: bytes

    runs: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    """Inputs in the order of the graph, and the outputs to expect."""

    rtol: float
    atol: float

    def check(self, expected: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Compare as the ONNX project does.

        Raises:
            AssertionError: They differ.
        """
        Runner.assert_similar_outputs(expected, outputs, self.rtol, self.atol)


@dataclass(frozen=True, slots=True)
class Tried:
    """What this process made of a case."""

    verdict: Verdict

    inputs: Sequence[str] = ()
    """Names, in the order of the graph."""

    outputs: Sequence[str] = ()


def generated(operators: Sequence[str] = ()) -> dict[str, Case]:
    """Make the cases of the modules `operators`, such as `topk`; of all modules if none is named.

    They may come with more than was asked for. All of them take seconds to make.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Generators provoke overflows to expect infinities.
        for operator in operators:
            importlib.import_module(f"{node.__name__}.{operator}")
        made = node._NodeTestCases if operators else node.collect_testcases(None)
    return {
        case.name: Case(
            case.name,
            case.model.SerializeToString(),
            [(_values(given), _values(expected)) for given, expected in case.data_sets or ()],
            case.rtol,
            case.atol,
        )
        for case in made
        if case.model is not None
    }


def stored() -> dict[str, Case]:
    """Read the cases that are files of the package."""
    return {
        path.parent.name: Case(
            path.parent.name,
            path.read_bytes(),
            [_data_set(data) for data in sorted(path.parent.glob("test_data_set_*"))],
            1e-3,
            1e-7,
        )
        for folder in FOLDERS
        for path in sorted((DATA / folder).glob("test_*/model.onnx"))
    }


def networks() -> dict[str, Case]:
    """Read well-known networks, of the real sizes and with constants for weights.

    Their inputs are made as the runner of the project makes them.
    """
    cases: dict[str, Case] = {}
    for name in NETWORKS:
        path = DATA / "light" / f"light_{name}.onnx"
        model = onnx.load(path)
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [
            Runner.generate_dummy_data(value, name=path.stem)
            for value in model.graph.input
            if value.name not in weights
        ]
        outputs = [_tensor(path.with_name(f"{path.stem}_output_0.pb").read_bytes())]
        cases[path.stem] = Case(path.stem, path.read_bytes(), [(inputs, outputs)], 1e-3, 1e-7)
    return cases


def attempt(case: Case) -> Tried:
    """Run a case in this process."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL
    try:
        session = ort.InferenceSession(case.graph, options, providers=["CPUExecutionProvider"])
    except Exception:  # It has no common base for its errors.
        return Tried(Verdict.NOT_IN_RUNTIME)
    arguments = [*session.get_inputs(), *session.get_outputs()]
    if any(argument.type not in _CARRIED for argument in arguments):
        return Tried(Verdict.NO_DATATYPE)
    inputs = [argument.name for argument in session.get_inputs()]
    outputs = [argument.name for argument in session.get_outputs()]
    for given, expected in case.runs:
        try:
            answers = _run(session, dict(zip(inputs, given, strict=True)), outputs)
        except Exception:  # As above.
            return Tried(Verdict.NOT_IN_RUNTIME)
        try:
            case.check(expected, answers)
        except AssertionError:
            return Tried(Verdict.DIFFERS_IN_RUNTIME)
    return Tried(Verdict.SERVABLE, inputs, outputs)


def _run(session: Any, feed: dict[str, Any], outputs: Sequence[str]) -> list[Array]:
    if not any(
        "bfloat16" in value.type for value in (*session.get_inputs(), *session.get_outputs())
    ):
        answers: list[Array] = session.run(outputs, feed)
        return answers
    # NumPy has no such numbers of its own: hand them over as what they are made of.
    values = {name: _ort_value(array) for name, array in feed.items()}
    return [_array(value) for value in session.run_with_ort_values(outputs, values)]


def _ort_value(array: Array) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array).view(np.uint16), TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: ort.OrtValue) -> Array:
    if value.element_type() != TensorProto.BFLOAT16:
        return np.array(value.numpy())
    size = math.prod(value.shape())
    data = ctypes.string_at(value.data_ptr(), 2 * size)
    return np.frombuffer(data, ml_dtypes.bfloat16).reshape(value.shape())


def _data_set(folder: Path) -> tuple[list[Any], list[Any]]:
    inputs, outputs = (
        [
            _tensor((folder / f"{kind}_{index}.pb").read_bytes())
            for index in range(len(list(folder.glob(f"{kind}_*.pb"))))
        ]
        for kind in ("input", "output")
    )
    return inputs, outputs


def _tensor(data: bytes) -> Any:
    try:
        return numpy_helper.to_array(TensorProto.FromString(data))
    except Exception:  # A sequence or an optional: nothing the protocol can carry.
        return None


def _values(written: Iterable[Any]) -> list[Any]:
    """Make arrays of all that can be one; sequences and optionals stay what they are."""
    return [
        numpy_helper.to_array(value)
        if isinstance(value, TensorProto)
        else np.asarray(value)
        if isinstance(value, np.generic)
        else value
        for value in written
    ]

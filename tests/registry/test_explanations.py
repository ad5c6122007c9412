"""Bundles with a graph that explains: admitted like the model, and only together with it."""

from __future__ import annotations  # The client's stub exists only in the .pyi.

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from servery_registry.bundle import BundleInvalidError, Signature, Tensor, check_explanation
from servery_registry.golden import check_golden
from tests.registry.conftest import Client, bundle, failure, npz, signature
from tests.registry.test_graphs import external

WHY = {"name": "why", "datatype": "FP32", "shape": [-1, 2], "meaning": "shares"}
ROWS = np.ones((3, 2), np.float32)


def stated(explanation: Any) -> bytes:
    return json.dumps({**signature(), "explanation": explanation}).encode()


def explanation() -> bytes:
    """A graph from `x` FP32 [N, 2] to the same."""
    x, why = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "why")
    )
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["why"])], "g", [x], [why])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def explained(**changes: bytes | None) -> dict[str, bytes]:
    """Files of a good bundle that explains, changed."""
    files: dict[str, bytes | None] = {
        "signature_dot_json": stated({"outputs": [WHY]}),
        "explain_dot_onnx": explanation(),
        "golden_dot_npz": npz(explain__why=ROWS),
    }
    return bundle(**(files | changes))


async def test_a_bundle_may_explain(client: Client) -> None:
    version = await client.register(explained())
    assert "explain.onnx" in {file.path for file in version.files}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        pytest.param(
            explained(explain_dot_onnx=None), "ERROR_REASON_BUNDLE_INVALID", id="stated alone"
        ),
        pytest.param(
            explained(explain_dot_onnx=b"no graph"), "ERROR_REASON_GRAPH_REFUSED", id="no graph"
        ),
        pytest.param(
            explained(explain_dot_onnx=external("model.onnx")),
            "ERROR_REASON_GRAPH_REFUSED",
            id="tensors in the model",
        ),
        pytest.param(
            explained(model_dot_onnx=external("explain.onnx")),
            "ERROR_REASON_GRAPH_REFUSED",
            id="tensors of the model in it",
        ),
    ],
)
async def test_what_cannot_explain_is_refused(
    client: Client, files: dict[str, bytes], reason: str
) -> None:
    assert (await failure(client.register(files))).reason == reason
    assert client.leftovers() == []


@pytest.mark.parametrize(
    "document",
    [
        pytest.param([], id="a list"),
        pytest.param({}, id="nothing"),
        pytest.param({"outputs": []}, id="no output"),
        pytest.param({"outputs": [WHY, WHY]}, id="an output twice"),
        pytest.param({"outputs": [{**WHY, "shape": [3, 2]}]}, id="no batch"),
        pytest.param({"outputs": [{**WHY, "datatype": "FP31"}]}, id="no datatype"),
    ],
)
def test_a_malformed_statement_is_refused(document: Any) -> None:
    with pytest.raises(BundleInvalidError):
        Signature.parse(stated(document))


def tensor(name: str, width: int) -> Tensor:
    return Tensor(name, "FP32", (-1, width))


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(Signature((tensor("x", 3),), (tensor("why", 2),)), id="shape of an input"),
        pytest.param(Signature((tensor("z", 2),), (tensor("why", 2),)), id="name of an input"),
        pytest.param(
            Signature((tensor("x", 2), tensor("z", 2)), (tensor("why", 2),)), id="one more input"
        ),
        pytest.param(Signature((tensor("x", 2),), (tensor("why", 3),)), id="shape of an output"),
        pytest.param(Signature((tensor("x", 2),), (tensor("how", 2),)), id="name of an output"),
    ],
)
def test_a_graph_that_is_not_as_stated_is_refused(graph: Signature) -> None:
    says = Signature.parse(stated({"outputs": [WHY]}))
    model = Signature((tensor("x", 2),), (tensor("p", 2),))
    check_explanation(says, model, Signature(model.inputs, says.explanation))
    with pytest.raises(BundleInvalidError):
        check_explanation(says, model, graph)
    with pytest.raises(BundleInvalidError):  # Nothing is stated.
        check_explanation(model, model, Signature(model.inputs, says.explanation))


@pytest.mark.parametrize(
    ("document", "golden", "good"),
    [
        pytest.param({"outputs": [WHY]}, npz(explain__why=ROWS), True, id="explained"),
        pytest.param({"outputs": [WHY]}, npz(), True, id="not known"),
        pytest.param(None, npz(explain__why=ROWS), False, id="of nothing"),
        pytest.param({"outputs": [WHY]}, npz(explain__why=ROWS[:2]), False, id="too few"),
        pytest.param({"outputs": [WHY]}, npz(explain__how=ROWS), False, id="of another output"),
    ],
)
def test_golden_rows_are_explained_wholly_or_not_at_all(
    tmp_path: Path, document: Any, golden: bytes, *, good: bool
) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(golden)
    says = Signature.parse(stated(document))
    if good:
        check_golden(path, says)
        return
    with pytest.raises(BundleInvalidError):
        check_golden(path, says)

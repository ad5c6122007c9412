"""Of linear networks the attributions are known: weights times how far features are from 0."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import completeness, export
from servery_trainer.attribution import explain
from servery_trainer.classification import Classification
from servery_trainer.fitting import fit_columns
from servery_trainer.forecast import Forecast
from servery_trainer.gradients.emitter import UnsupportedError
from servery_trainer.heads import Head
from servery_trainer.hyperparameters import Explaining
from servery_trainer.imputation import Imputation
from servery_trainer.multi_label import MultiLabel
from servery_trainer.numbering import Numbering
from servery_trainer.parity import Graph
from servery_trainer.preprocessing import ArrayPreprocessing, FloatArray, Preprocessing
from servery_trainer.regression import Regression
from servery_trainer.tasks import Fill
from servery_trainer.texts import BagPreprocessing, Tokenizer
from tests.trainer.test_served_as_trained import ODD_ROWS, TYPES, table

VALUE = Regression("y", variance=1.0)
Arrays = dict[str, NDArray[Any]]


class Linear:
    """Features times weights, plus a bias, then one more operator; see `frameworks.Answering`."""

    def __init__(self, weights: NDArray[Any], bias: NDArray[Any], last: str = "Identity") -> None:
        self._weights = weights.astype(np.float32)
        self._bias = bias.astype(np.float32)
        self._last = last

    def predict(self, features: FloatArray) -> FloatArray:
        answers = np.asarray(features.reshape(len(features), -1) @ self._weights + self._bias)
        assert self._last == "Identity"
        return answers

    def to_onnx(self) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        rank, width = len(self._weights), self._weights.shape[1]
        nodes = [
            helper.make_node("Reshape", ["features", "flat"], ["table"]),
            helper.make_node("MatMul", ["table", "weights"], ["products"]),
            helper.make_node("Add", ["products", "bias"], ["sums"]),
            helper.make_node(self._last, ["sums"], ["answers"]),
        ]
        constants = {
            "flat": np.array([-1, rank]),
            "weights": self._weights,
            "bias": self._bias,
        }
        graph = helper.make_graph(
            nodes,
            "network",
            [value("features", onnx.TensorProto.FLOAT, None)],
            [value("answers", onnx.TensorProto.FLOAT, ["batch", width])],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opset = helper.make_opsetid("", 18)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        model.graph.input[0].type.tensor_type.shape.dim.add().dim_param = "batch"
        return model


def normal(*shape: int) -> FloatArray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def told(
    network: Linear, preprocessing: Preprocessing, head: Head, inputs: Arrays, steps: int = 64
) -> Arrays:
    """Return the outputs of the graph that explains."""
    model = export.to_onnx(network, preprocessing, head)
    explanation = explain(model, preprocessing, head, steps)
    outputs = Graph(explanation.model, threads=1).run(inputs)
    assert list(outputs) == [output.name for output in explanation.outputs]
    for output in explanation.outputs:
        assert outputs[output.name].shape[1:] == output.shape
        kind = np.str_ if output.dtype == np.object_ else output.dtype
        assert outputs[output.name].dtype.type is np.dtype(kind).type
    return outputs


def columns() -> tuple[Preprocessing, Arrays]:
    """Columns of each type, and rows with values that are missing, unseen, empty and extreme."""
    train = table()
    policy = Imputation.of(pb.MISSING_POLICY_IMPUTE_MEDIAN, Fill())
    preprocessing = fit_columns(TYPES, train, policy)
    odd = {
        name: np.array([[row[place]] for row in ODD_ROWS], values.dtype)
        for place, (name, values) in enumerate(train.items())
    }
    return preprocessing, {name: np.concatenate([odd[name], train[name]]) for name in train}


def test_the_features_of_a_column_are_added_up() -> None:
    preprocessing, inputs = columns()
    features = preprocessing.apply(inputs)
    weights = normal(features.shape[1], 1)
    found = told(Linear(weights, np.array([7.0])), preprocessing, VALUE, inputs)
    ends = np.cumsum([1, 3, 2, 5])  # features of dose, ward, smoker, born
    assert ends[-1] == features.shape[1]
    parts = np.split(features * weights[:, 0], ends[:-1], axis=1)
    for name, part in zip(("dose", "ward", "smoker", "born"), parts, strict=True):
        expected = part.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found[f"attribution.{name}"], expected, rtol=1e-4, atol=1e-5)
    assert "explained.target" not in found
    np.testing.assert_allclose(found["explained.baseline_score"], 7, rtol=1e-6)
    np.testing.assert_allclose(
        found["explained.score"], features @ weights + 7, rtol=1e-4, atol=1e-4
    )
    assert found["explained.completeness_gap"].max() < 1e-4
    missing = found["attribution.dose"][0, 0]  # as much as the median adds, which is put in
    present = np.nanmedian(inputs["dose"][len(ODD_ROWS) :])
    at_median = {name: values[:1].copy() for name, values in inputs.items()} | {
        "dose": np.array([[present]], np.float32)
    }
    again = told(Linear(weights, np.array([7.0])), preprocessing, VALUE, at_median)
    assert missing == pytest.approx(again["attribution.dose"][0, 0])


def test_images_keep_their_shape() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (9, 4, 3, 2)).astype(np.uint8)
    preprocessing = ArrayPreprocessing.fit("image", pictures, by_channel=False)
    weights = normal(24, 1)
    found = told(Linear(weights, np.zeros(1)), preprocessing, VALUE, {"image": pictures})
    expected = preprocessing.apply({"image": pictures}) * weights.reshape(4, 3, 2)
    np.testing.assert_allclose(found["attribution.image"], expected, rtol=1e-4, atol=1e-6)


def test_what_a_word_adds_is_shared_by_the_places_where_it_stands() -> None:
    texts = np.array([["good, bad good"], ["bad\nugly bad"], ["ugly good"]], np.object_)
    tokenizer = Tokenizer.fit("text", texts[:, 0].tolist(), max_tokens=5, vocabulary_size=9)
    preprocessing = BagPreprocessing.fit(tokenizer, {"text": texts})
    weights = normal(3, 1)
    network = Linear(weights, np.zeros(1))
    asked = {"text": np.array([["Good good  who bad"], [""], ["a b c d e f g"]], np.object_)}
    found = told(network, preprocessing, VALUE, asked)
    words, adds = found["explained.words"], found["attribution.text"]
    length = tokenizer.length
    assert words[0].tolist() == ["Good", "good", "who", "bad", ""][:length]
    assert words[1].tolist() == [""] * length
    assert words[2].tolist() == ["a", "b", "c", "d", "e"][:length]
    good, bad = (tokenizer.words.index(word) for word in ("good", "bad"))
    by_word = preprocessing.apply(asked)[0] * weights[:, 0]
    assert adds[0, 0] == adds[0, 1] == pytest.approx(by_word[good] / 2)
    assert adds[0, 2] == 0
    if length > 3:
        assert adds[0, 3] == pytest.approx(by_word[bad])
    np.testing.assert_array_equal(adds[1:], 0)


def test_the_probability_of_the_most_probable_class_is_explained() -> None:
    preprocessing, inputs = columns()
    features = preprocessing.feature_shape[0]
    network = Linear(normal(features, 3) / 4, np.array([0.0, 0.1, 0.2]), "Softmax")
    head = Classification(("no", "täglich", ""))
    rows = {name: values[len(ODD_ROWS) :] for name, values in inputs.items()}
    found = told(network, preprocessing, head, rows)
    answers = Graph(export.to_onnx(network, preprocessing, head), threads=1).run(rows)
    np.testing.assert_array_equal(found["explained.target"], answers["label"])
    best = answers["probabilities"].max(axis=1, keepdims=True)
    np.testing.assert_allclose(found["explained.score"], best, rtol=1e-6)
    total = sum(values for name, values in found.items() if name.startswith("attribution."))
    change = found["explained.score"] - found["explained.baseline_score"]
    np.testing.assert_allclose(total, change, atol=1e-5)
    assert found["explained.completeness_gap"].max() < 1e-4


def test_the_most_probable_of_several_labels_is_explained() -> None:
    preprocessing, inputs = columns()
    network = Linear(normal(preprocessing.feature_shape[0], 2), np.zeros(2), "Sigmoid")
    found = told(network, preprocessing, MultiLabel(("a", "b")), inputs)
    answers = Graph(export.to_onnx(network, preprocessing, MultiLabel(("a", "b"))), 1).run(inputs)
    best = answers["probabilities"].argmax(axis=1)
    assert found["explained.target"][:, 0].tolist() == [("a", "b")[place] for place in best]


def test_the_mean_of_a_forecast_is_explained() -> None:
    history = normal(6, 5, 2)
    preprocessing = ArrayPreprocessing.fit("history", history, by_channel=True)
    weights = normal(10, 3)
    found = told(
        Linear(weights, np.zeros(3)), preprocessing, Forecast("y", 3, 1.0), {"history": history}
    )
    expected = preprocessing.apply({"history": history}) * weights.mean(axis=1).reshape(5, 2)
    np.testing.assert_allclose(found["attribution.history"], expected, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_explained_is_refused() -> None:
    preprocessing, inputs = columns()
    width = preprocessing.feature_shape[0]
    network = Linear(normal(width, 1), np.zeros(1), "Sinh")
    model = export.to_onnx(network, preprocessing, VALUE)
    with pytest.raises(UnsupportedError, match="Sinh"):
        explain(model, preprocessing, VALUE, 8)
    users = Numbering.fit("ward", inputs["ward"][:, 0])
    model = export.to_onnx(Linear(normal(1, 1), np.zeros(1)), users, VALUE)
    with pytest.raises(UnsupportedError):
        explain(model, users, VALUE, 8)


def test_a_column_called_like_an_output_is_no_reason_to_fail() -> None:
    inputs = {name: normal(5, 1) for name in ("score", "target", "explained.score")}
    preprocessing = fit_columns({}, inputs, None)
    network = Linear(normal(3, 1), np.zeros(1))
    model = export.to_onnx(network, preprocessing, VALUE)
    found = completeness.explained(model, preprocessing, VALUE, inputs, Explaining(), 1)
    assert found.findings is not None
    assert "explained.score" in found.findings.refusal
    del inputs["explained.score"]
    preprocessing = fit_columns({}, inputs, None)
    assert "attribution.score" in told(
        Linear(normal(2, 1), np.zeros(1)), preprocessing, VALUE, inputs
    )


def test_a_network_that_needs_too_much_memory_is_refused() -> None:
    rows = np.zeros((2, 1_000_000), np.float32)
    rows[0] = 1
    preprocessing = ArrayPreprocessing.fit("x", rows, by_channel=False)
    network = Linear(np.ones((1_000_000, 1), np.float32), np.zeros(1))
    model = export.to_onnx(network, preprocessing, VALUE)
    with pytest.raises(UnsupportedError, match="MiB"):
        explain(model, preprocessing, VALUE, 256)


class TestGate:
    """What a job does with a graph that explains."""

    def explained(self, scale: float, wanted: Explaining) -> completeness.Explained:
        """Explain a network that jumps the faster the larger `scale`."""
        preprocessing, inputs = columns()
        width = preprocessing.feature_shape[0]
        network = Linear(normal(width, 1) * scale, np.array([-0.3 * scale]), "Sigmoid")
        model = export.to_onnx(network, preprocessing, VALUE)
        rows = {name: values[len(ODD_ROWS) :] for name, values in inputs.items()}
        return completeness.explained(model, preprocessing, VALUE, rows, wanted, 1)

    def test_attributions_that_add_up_are_kept(self) -> None:
        found = self.explained(1, Explaining())
        assert found.findings is not None
        assert found.findings.refusal == ""
        assert found.findings.steps == 64
        assert found.findings.row_count == 60
        assert 0 <= found.findings.median_gap <= found.findings.largest_gap < 1e-4
        assert found.findings.size_bytes == len(found.files()["explain.onnx"])
        assert list(found.findings.outputs) == [output.name for output in found.outputs]

    def test_more_steps_are_taken_where_few_do_not_add_up(self) -> None:
        found = self.explained(60, Explaining())
        assert found.findings is not None
        assert found.findings.steps in (128, 256)
        assert found.findings.largest_gap <= found.findings.tolerance

    @pytest.mark.parametrize(
        ("scale", "wanted"), [(60, Explaining(steps=3)), (100_000, Explaining())]
    )
    def test_attributions_that_do_not_add_up_are_left_out(
        self, scale: float, wanted: Explaining
    ) -> None:
        found = self.explained(scale, wanted)
        assert found.findings is not None
        assert found.findings.refusal
        assert found.findings.largest_gap > found.findings.tolerance
        assert not found.files()
        assert not found.outputs
        assert not found.run({})

    def test_nothing_is_built_where_nobody_asks(self) -> None:
        found = self.explained(1, Explaining(gradients=False))
        assert found.findings is None
        assert not found.files()

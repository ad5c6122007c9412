"""Of every network, converted for real: the graph that explains says what Keras' gradients say."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import export
from servery_trainer.attribution import explain
from servery_trainer.canonical import canonical
from servery_trainer.fitting import fit_columns, fit_text, vocabulary_size
from servery_trainer.parity import Graph
from servery_trainer.preprocessing import ArrayPreprocessing, Preprocessing
from servery_trainer.spec import Spec, parse_spec
from servery_trainer.tasks import TextTask
from tests.trainer.specs import image, tabular, text
from tests.trainer.specs import table as spec_of
from tests.trainer.test_served_as_trained import ROWS, TYPES, table, target
from tests.trainer.test_text_families import SENTENCES
from tests.trainer.test_text_families import rows as texts

pytestmark = pytest.mark.slow  # and the tests import TensorFlow, not the module: seconds saved

STEPS = 5
CLASSES = 3


def integrated(network: Any, features: NDArray[Any], *, words: bool) -> NDArray[Any]:
    """Integrate the gradient of the most probable class by TensorFlow, over the same points."""
    import keras
    import tensorflow as tf

    given = network.input
    rows = tf.constant(features)
    model, ends = keras.Model(given, network.output), rows
    if words:
        vectors = next(
            layer for layer in network.layers if isinstance(layer, keras.layers.Embedding)
        )
        model = keras.Model([given, vectors.output], network.output)
        ends = vectors(rows)
    best = tf.argmax(network(rows, training=False), axis=1)
    total = tf.zeros_like(ends)
    points, weights = np.polynomial.legendre.leggauss(STEPS)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        at = tf.cast(point, tf.float32) * ends
        with tf.GradientTape() as tape:
            tape.watch(at)
            logits = model([rows, at] if words else at, training=False)
            probability = tf.gather(tf.nn.softmax(logits), best, axis=1, batch_dims=1)
        total += tf.cast(weight, tf.float32) * tape.gradient(probability, at)
    found: NDArray[Any] = (total * ends).numpy()
    return found.sum(axis=-1) if words else found


def check(spec: Spec, preprocessing: Preprocessing, inputs: dict[str, Any]) -> None:
    from servery_trainer import problems
    from servery_trainer.keras_framework.framework import Keras

    head, objective = problems.pose(target("classes"), np.arange(ROWS), spec.training)
    vocabulary = vocabulary_size(preprocessing)
    network = Keras().build(spec.family, preprocessing.feature_shape, CLASSES, vocabulary, seed=1)
    for variable in network.trainable_variables:  # far from a network that says nothing
        variable.assign(variable * 1.5)
    answering = Keras().answering([network], objective)
    model = canonical(export.to_onnx(answering, preprocessing, head))
    found = Graph(explain(model, preprocessing, head, STEPS).model, threads=1).run(inputs)
    expected = integrated(network, preprocessing.apply(inputs), words=vocabulary > 0)
    parts = [values for name, values in found.items() if name.startswith("attribution.")]
    got = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=1e-3)
    answers = export.predict(answering, preprocessing, inputs)
    np.testing.assert_allclose(found["explained.score"][:, 0], answers.max(axis=1), rtol=1e-4)


def test_tables() -> None:
    numbers = {"dose": table()["dose"], "weight": table()["dose"] ** 2}
    numbers = {name: np.nan_to_num(values) for name, values in numbers.items()}
    check(parse_spec(tabular()), fit_columns(TYPES, numbers, None), numbers)


@pytest.mark.parametrize("family", ["convolutional", "dense"])
def test_images(family: str) -> None:
    spec = image()
    getattr(spec, family).SetInParent()
    pictures = np.random.default_rng(0).integers(0, 255, (12, 11, 9, 2)).astype(np.uint8)
    preprocessing = ArrayPreprocessing.fit("image", pictures, by_channel=False)
    check(parse_spec(spec), preprocessing, {"image": pictures})


RECURRENT = {
    "LSTM": pb.RecurrentFamily(),
    "GRU": pb.RecurrentFamily(cell=pb.RECURRENT_CELL_GRU),
    "both ways": pb.RecurrentFamily(bidirectional=True),
}


@pytest.mark.parametrize("family", ["embedding", "transformer", "GRU", "both ways"])
def test_words(family: str) -> None:
    spec = text({"recurrent": RECURRENT[family]} if family in RECURRENT else {family: {}})
    parsed = parse_spec(spec)
    assert isinstance(parsed.task, TextTask)
    preprocessing = fit_text(parsed.task, parsed.family, texts(*SENTENCES))
    check(parsed, preprocessing, texts(*SENTENCES))


@pytest.mark.parametrize("family", ["convolutional", "transformer", "LSTM", "GRU"])
def test_sequences(family: str) -> None:
    spec = spec_of("sequence_classification")
    if family in RECURRENT:
        spec.recurrent.CopyFrom(RECURRENT[family])
    else:
        getattr(spec, family).SetInParent()
    rows = np.random.default_rng(7).normal([50, -0.1], [20, 0.01], (12, 10, 2)).astype(np.float32)
    preprocessing = ArrayPreprocessing.fit("sequence", rows, by_channel=True)
    check(parse_spec(spec), preprocessing, {"sequence": rows})


def test_ensembles_of_several_networks() -> None:
    from servery_trainer import problems
    from servery_trainer.keras_framework.framework import Keras

    spec = parse_spec(text({"embedding": {}}))
    assert isinstance(spec.task, TextTask)
    preprocessing = fit_text(spec.task, spec.family, texts(*SENTENCES))
    head, objective = problems.pose(target("classes"), np.arange(ROWS), spec.training)
    shape, vocabulary = preprocessing.feature_shape, vocabulary_size(preprocessing)
    families = (spec.family, parse_spec(text({"transformer": {}})).family)
    networks = [Keras().build(family, shape, CLASSES, vocabulary, seed=1) for family in families]
    weights = np.array([0.75, 0.25], np.float32)
    answering = Keras().answering(networks, objective, weights)
    model = canonical(export.to_onnx(answering, preprocessing, head))
    found = Graph(explain(model, preprocessing, head, 64).model, 1).run(texts(*SENTENCES))
    answers = export.predict(answering, preprocessing, texts(*SENTENCES))
    np.testing.assert_allclose(found["explained.score"][:, 0], answers.max(axis=1), rtol=1e-4)
    change = found["explained.score"] - found["explained.baseline_score"]
    assert np.abs(change).max() > 0.01
    total = found["attribution.sms"].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(total, change, atol=1e-3)

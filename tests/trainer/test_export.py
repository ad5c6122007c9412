"""Every network, converted for real: the graph answers what Keras and NumPy answer."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from servery_trainer import parity
from servery_trainer.frameworks import ConversionError
from servery_trainer.imputation import median
from servery_trainer.networks import Convolutional, Dense
from servery_trainer.preprocessing import ArrayPreprocessing, TablePreprocessing
from servery_trainer.sizes import parameter_count
from servery_trainer.spec import parse_spec
from servery_trainer.targets import Classes
from tests.trainer.specs import tabular

pytestmark = pytest.mark.slow  # and the tests import TensorFlow, not the module: seconds saved


@pytest.fixture(autouse=True)
def seed() -> None:
    import keras

    keras.utils.set_random_seed(1)


def table(*names: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(5, 3, (70, 1)).astype(np.float32) for name in names}


def pictures(height: int, width: int, channels: int, dtype: Any = np.uint8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"image": rng.integers(0, 255, (70, height, width, channels)).astype(dtype)}


def classifier(labels: tuple[str, ...]) -> Any:
    """Return the head and the objective of a classifier."""
    from servery_trainer import problems

    target = Classes(values=np.arange(len(labels)), labels=labels)
    return problems.pose(target, target.values, SETTINGS)


def check(family: Dense | Convolutional, inputs: dict[str, Any], labels: tuple[str, ...]) -> Any:
    """Convert an untrained network and compare; return the loaded graph."""
    from servery_trainer import export
    from servery_trainer.keras_framework.framework import Keras

    preprocessing: Any = (
        ArrayPreprocessing.fit("image", inputs["image"], by_channel=False)
        if "image" in inputs
        else TablePreprocessing.fit(inputs, fill=median)
    )
    network = Keras().build(family, preprocessing.feature_shape, len(labels), 0, seed=1)
    expected_size = parameter_count(family, preprocessing.feature_shape, len(labels))
    assert network.count_params() == expected_size
    head, objective = classifier(labels)
    answering = Keras().answering([network], objective)
    model = export.to_onnx(answering, preprocessing, head)
    expected = head.decode(export.predict(answering, preprocessing, inputs))
    graph = parity.Graph(model, threads=1)
    found = parity.check_parity(graph, inputs, expected, tolerance=1e-5)
    assert found.label_agreement == 1
    return ort.InferenceSession(model.SerializeToString())


SETTINGS = parse_spec(tabular()).training
DENSE = Dense(hidden_units=(8, 4), dropout=0.1)


def test_inputs_are_the_columns_whatever_they_are_called() -> None:
    names = ("mean radius", "features", "_/labels", "__/x:0", "ärea %", "a" * 200)
    session = check(DENSE, table(*names), ("no", "yes"))
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        (name, "tensor(float)", ["batch", 1]) for name in names
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("label", "tensor(string)", ["batch", 1]),
        ("probabilities", "tensor(float)", ["batch", 2]),
    ]


def test_missing_values_are_imputed_inside_the_graph() -> None:
    inputs = table("a", "b")
    inputs["a"][::3] = np.nan
    session = check(DENSE, inputs, ("no", "yes"))
    row = {name: np.full((1, 1), np.nan, np.float32) for name in inputs}
    assert np.isfinite(session.run(["probabilities"], row)[0]).all()


@pytest.mark.parametrize(
    ("family", "size"),
    [
        pytest.param(DENSE, (5, 4, 3), id="dense"),
        pytest.param(
            Convolutional(filters=(3, 4, 5, 6), dense_units=7, dropout=0.2), (9, 7, 1), id="pooled"
        ),
        pytest.param(
            Convolutional(filters=(3, 4), dense_units=7, dropout=0.2), (2, 16, 2), id="too thin"
        ),
    ],
)
def test_images_of_any_size(family: Dense | Convolutional, size: tuple[int, int, int]) -> None:
    session = check(family, pictures(*size), ("0", "1", "2"))
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", *size])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint16"])
def test_images_of_any_number_type(dtype: str) -> None:
    check(DENSE, pictures(3, 3, 1, dtype), ("täglich", "nie"))


@pytest.mark.parametrize("activation", ["gelu", "celu"])
def test_operators_that_the_converter_lacks(activation: str) -> None:
    import keras

    from servery_trainer import export
    from servery_trainer.keras_framework.framework import Keras

    inputs = table("a", "b", "c")
    preprocessing = TablePreprocessing.fit(inputs, fill=None)
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, activation=lambda x: activate(activation, x)),
            keras.layers.Dense(2),
        ]
    )
    head, objective = classifier(("x", "y"))
    answering = Keras().answering([network], objective)
    graph = parity.Graph(export.to_onnx(answering, preprocessing, head), threads=1)
    expected = head.decode(export.predict(answering, preprocessing, inputs))
    parity.check_parity(graph, inputs, expected, tolerance=1e-5)


def activate(name: str, x: Any) -> Any:
    import keras

    return keras.ops.gelu(x, approximate=False) if name == "gelu" else keras.ops.celu(x)


def test_a_graph_the_converter_left_incomplete_is_refused() -> None:
    import keras

    from servery_trainer import export
    from servery_trainer.keras_framework.framework import Keras

    inputs = table("a", "b")
    preprocessing = TablePreprocessing.fit(inputs, fill=None)
    network = keras.Sequential(
        [keras.Input((2,)), keras.layers.Discretization([0.0, 1.0]), keras.layers.Dense(2)]
    )
    head, objective = classifier(("x", "y"))
    with pytest.raises(ConversionError):
        export.to_onnx(Keras().answering([network], objective), preprocessing, head)

"""Preprocessing computes the same in the graph as in NumPy."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import helper

from servery_trainer.clipping import Clip
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.imputation import median
from servery_trainer.preprocessing import ArrayPreprocessing, Preprocessing, TablePreprocessing


def run_graph(preprocessing: Preprocessing, inputs: dict[str, Any]) -> Any:
    return load_graph(preprocessing).run(None, inputs)[0]


def load_graph(preprocessing: Preprocessing) -> ort.InferenceSession:
    part = preprocessing.to_onnx("features", "_/")
    shape: list[str | int | None] = ["batch", *preprocessing.feature_shape]
    features = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, shape)
    graph = helper.make_graph(part.nodes, "g", part.inputs, [features], part.initializers)
    opsets = [helper.make_opsetid("", part.opset), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString())


def columns(values: Any) -> dict[str, Any]:
    return {f"column {index}": values[:, index : index + 1] for index in range(values.shape[1])}


FLOATS = st.floats(width=32, allow_infinity=False, allow_nan=False)
SHAPES = npst.array_shapes(min_dims=2, max_dims=2, max_side=6)
TABLES = npst.arrays(np.float32, SHAPES, elements=FLOATS)


@settings(max_examples=60, deadline=None)
@given(table=TABLES, gaps=st.data(), impute=st.booleans(), clip=st.booleans())
def test_a_table_comes_out_equal_bit_for_bit(
    table: Any,
    gaps: st.DataObject,
    impute: bool,
    clip: bool,
) -> None:
    held = {"column 0": Clip(lower_quantile=0.2, upper_quantile=0.7), "column 1": Clip(lower=3)}
    preprocessing = TablePreprocessing.fit(
        columns(table), fill=median if impute else None, clip=held if clip else None
    )
    missing = gaps.draw(npst.arrays(np.bool_, table.shape))
    served = columns(np.where(missing, np.float32(np.nan), table))
    np.testing.assert_array_equal(run_graph(preprocessing, served), preprocessing.apply(served))


@settings(max_examples=60, deadline=None)
@given(
    images=st.sampled_from(
        [np.uint8, np.int8, np.uint16, np.int64, np.float16, np.float32]
    ).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=4, max_dims=4, max_side=4))
    )
)
def test_images_come_out_equal_bit_for_bit(images: Any) -> None:
    images = np.nan_to_num(images, nan=0, posinf=1, neginf=-1)
    preprocessing = ArrayPreprocessing.fit("image", images, by_channel=False)
    inputs = {"image": images}
    np.testing.assert_array_equal(run_graph(preprocessing, inputs), preprocessing.apply(inputs))


def test_values_are_held_between_the_ends_before_anything_else() -> None:
    table = np.array([[1, 1], [2, 2], [3, 3], [4, 4], [99, np.nan]], np.float32)
    clip = {"column 0": Clip(upper=4, lower_quantile=0.25)}
    preprocessing = TablePreprocessing.fit(columns(table), fill=median, clip=clip)
    assert preprocessing.means.tolist() == [3.0, 2.5]
    served = np.array([[-7, -7], [np.inf, 99], [2, 4], [np.nan, np.nan]], np.float32)
    features = run_graph(preprocessing, columns(served))
    np.testing.assert_array_equal(features, preprocessing.apply(columns(served)))
    low, high = features[2, 0], preprocessing.apply(columns(table))[3, 0]
    assert features[:2, 0].tolist() == [low, high]
    assert features[1, 1] > features[2, 1]  # the other column is as it comes


def test_columns_are_standardised_one_by_one() -> None:
    table = np.array([[1, 1e9], [2, 1e9 + 64], [3, 1e9 + 128]], np.float32)
    features = TablePreprocessing.fit(columns(table), fill=None).apply(columns(table))
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(features.std(axis=0), 1, rtol=1e-6)


def test_a_constant_column_becomes_zero() -> None:
    table = np.full((7, 1), 0.1, np.float32)
    preprocessing = TablePreprocessing.fit(columns(table), fill=None)
    assert preprocessing.deviations == 1
    np.testing.assert_allclose(preprocessing.apply(columns(table)), 0, atol=1e-7)


def test_the_median_of_the_values_present_is_imputed() -> None:
    table = np.array([[1], [2], [100], [np.nan]], np.float32)
    preprocessing = TablePreprocessing.fit(columns(table), fill=median)
    assert preprocessing.fills == 2
    assert np.isfinite(run_graph(preprocessing, columns(table))).all()


def test_a_missing_value_nobody_asked_to_impute_stays_one() -> None:
    table = np.array([[1], [2]], np.float32)
    preprocessing = TablePreprocessing.fit(columns(table), fill=None)
    assert np.isnan(run_graph(preprocessing, columns(np.array([[np.nan]], np.float32)))).all()


def test_refuses_to_impute_a_column_without_values() -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        TablePreprocessing.fit(columns(np.full((3, 1), np.nan, np.float32)), fill=median)
    assert refused.value.problem == Problem.MISSING_VALUE
    assert refused.value.metadata["column"] == "column 0"

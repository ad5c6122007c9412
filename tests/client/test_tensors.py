"""Tensors survive the way to raw bytes and back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from servery.inference.v1 import grpc_service_pb2 as pb
from servery.tensors import DTYPES, from_output, to_input


@given(st.data(), st.sampled_from(sorted(DTYPES)))
def test_numbers_come_back_bit_for_bit(data: st.DataObject, datatype: str) -> None:
    shape = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    array: NDArray[np.generic] = data.draw(npst.arrays(DTYPES[datatype], shape))
    tensor, raw = to_input("x", array, datatype, [-1] * array.ndim)
    output = pb.ModelInferResponse.InferOutputTensor(
        name="x", datatype=tensor.datatype, shape=tensor.shape
    )
    assert from_output(output, raw).tobytes() == array.tobytes()


@given(st.lists(st.text()))
def test_texts_come_back(texts: list[str]) -> None:
    tensor, raw = to_input("x", texts, "BYTES", [-1])
    output = pb.ModelInferResponse.InferOutputTensor(datatype="BYTES", shape=tensor.shape)
    assert from_output(output, raw).tolist() == texts


def test_a_list_becomes_a_column() -> None:
    tensor, raw = to_input("age", [1, 2, 3], "FP32", [-1, 1])
    assert list(tensor.shape) == [3, 1]
    assert np.frombuffer(raw, "<f4").tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "datatype", "shape"),
    [
        pytest.param([[1, 2]], "FP32", [-1, 3], id="wrong width"),
        pytest.param(["a"], "FP32", [-1, 1], id="text for a number"),
        pytest.param([1], "BF16", [-1, 1], id="no such dtype in NumPy"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(
    values: Any, datatype: str, shape: list[int]
) -> None:
    with pytest.raises(ValueError, match="'x'"):
        to_input("x", values, datatype, shape)

"""The classification extension through the wire: top classes with labels."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.bfloat16 import from_float32
from servery_inference.classification import classify
from servery_inference.request import Output
from tests.inference import graphs
from tests.inference.calling import answers, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory

CONFIG = b"""
max_batch_size: 8
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] label_filename: "labels.txt" } ]
"""


def classes_request(model: str, x: Any, count: int) -> pb.ModelInferRequest:
    request = infer_request(model, {"x": x}, ["y"])
    request.outputs[0].parameters["classification"].int64_param = count
    return request


def labelled(root: Path, config: bytes = CONFIG, labels: str | None = "cat\ndog\r\nbird\n") -> None:
    graphs.store(root, "pets", graphs.identity("FP32", ("batch", "width")))
    (root / "pets" / "config.pbtxt").write_bytes(config)
    if labels is not None:
        (root / "pets" / "labels.txt").write_text(labels)


async def test_the_top_classes_have_labels_as_far_as_there_are(tmp_path: Path) -> None:
    labelled(tmp_path)
    x = np.array([[0.1, 0.7, 0.2, 0.5], [4, 3, 2, np.nan]], "<f4")
    async with serve_directory(tmp_path) as channel:
        response = await stub(channel).ModelInfer(classes_request("pets", x, 2))
        assert response.outputs[0].datatype == "BYTES"
        assert answers(response)["y"].tolist() == [
            [b"0.700000:1:dog", b"0.500000:3"],
            [b"4.000000:0:cat", b"3.000000:1:dog"],
        ]
        every = answers(await stub(channel).ModelInfer(classes_request("pets", x[1:], 9)))["y"]
        assert every.tolist()[0][-1] == b"nan:3"
        assert every.shape == (1, 4)


@pytest.mark.parametrize("count", [0, -1])
async def test_a_number_of_classes_that_cannot_be(channel: grpc.aio.Channel, count: int) -> None:
    request = classes_request("identity_fp32", np.zeros((1, 2), "<f4"), count)
    error = await failure(stub(channel).ModelInfer(request))
    assert error.reason == "ERROR_REASON_INFERENCE_REQUEST_INVALID"


async def test_texts_have_no_classes(channel: grpc.aio.Channel) -> None:
    x = np.array([["a", "b"]], object)
    error = await failure(stub(channel).ModelInfer(classes_request("identity_bytes", x, 1)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        pytest.param(CONFIG, None, id="missing"),
        pytest.param(CONFIG.replace(b"labels.txt", b"../x"), "a", id="a path"),
    ],
)
async def test_a_label_file_that_cannot_be_read_fails_the_load(
    tmp_path: Path, config: bytes, labels: str | None
) -> None:
    labelled(tmp_path, config, labels)
    async with serve_directory(tmp_path) as channel:
        state, reason = (await index(channel))["pets", "1"]
        assert state == "UNAVAILABLE"
        assert "label" in reason


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(np.array([1, 3, 3], "<i8"), ["3:1", "3:2", "1:0"], id="equal ones in order"),
        pytest.param(np.array([True, False]), ["1:0", "0:1"], id="truths"),
        pytest.param(np.array([5, 255], "u1"), ["255:1", "5:0"], id="unsigned"),
        pytest.param(np.array([1, np.inf, np.nan], "<f2"), ["inf:1", "1.000000:0", "nan:2"]),
        pytest.param(np.zeros(0, "<f4"), [], id="none"),
    ],
)
def test_values_of_every_kind_are_ordered(values: Any, expected: list[str]) -> None:
    classes = classify(Output("y", "", values), 3, (), "m", is_batched=False)
    assert classes.value.tolist() == expected
    assert classes.value.shape == (len(expected),)


def test_bits_of_bf16_are_numbers() -> None:
    bits = from_float32(np.array([1.5, -2, 3], "<f4"))
    classes = classify(Output("y", "BF16", bits), 2, (), "m", is_batched=False)
    assert classes.value.tolist() == ["3.000000:2", "1.500000:0"]


@pytest.mark.parametrize(
    ("shape", "is_batched", "expected"),
    [
        ((2, 3, 2), True, (2, 4)),
        ((2, 3, 2), False, (4,)),
        ((2,), True, (2, 1)),
        ((0, 3), True, (0, 3)),
        ((), False, (1,)),
    ],
)
def test_all_axes_but_the_batch_are_one_list(
    shape: tuple[int, ...], is_batched: bool, expected: tuple[int, ...]
) -> None:
    output = Output("y", "FP32", np.ones(shape, "<f4"))
    assert classify(output, 4, (), "m", is_batched=is_batched).value.shape == expected

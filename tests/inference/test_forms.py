"""The short way reads and writes what protobuf does, for any bytes."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.batch import NotRowWiseError
from servery_inference.codec import decode, encode
from servery_inference.forms import Form, PlainRequest, cut
from servery_inference.request import Answer, Output, Timing
from servery_inference.servable import Servable
from servery_inference.tensors import bind
from servery_rpc.errors import ServeryError
from tests.inference import graphs
from tests.inference.batchers import plus_servable
from tests.inference.calling import infer_request
from tests.mutations import mutations

Array = graphs.Array
CORPUS = Path(__file__).parent / "corpus"
FUZZ_S = 2.0

Request = pb.ModelInferRequest
texts = st.text(max_size=8)
parameters = st.dictionaries(
    texts, st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)), max_size=2
)
inputs = st.builds(
    Request.InferInputTensor,
    name=texts,
    datatype=texts,
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    parameters=parameters,
)
requests = st.builds(
    Request,
    model_name=texts,
    model_version=texts,
    id=texts,
    parameters=parameters,
    inputs=st.lists(inputs, max_size=3),
    outputs=st.lists(st.builds(Request.InferRequestedOutputTensor, name=texts), max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=3),
)
fields = requests.map(lambda request: request.SerializeToString())


def check_cut(message: bytes) -> bool:
    """Compare with protobuf; return whether the message was plain."""
    parts = cut(message)
    if parts is None:
        return False
    form, request_id, places = parts
    try:
        whole = Request.FromString(message)
    except DecodeError:
        assert not is_request(form) or not is_text(request_id)
        return True
    assert [message[start:stop] for start, stop in places] == list(whole.raw_input_contents)
    assert request_id.decode() == whole.id
    del whole.raw_input_contents[:]
    whole.id = ""
    assert Request.FromString(form) == whole
    return True


def is_request(message: bytes) -> bool:
    try:
        Request.FromString(message)
    except DecodeError:
        return False
    return True


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(fields)
def test_requests_as_clients_write_them_are_plain_and_read_as_protobuf_does(message: bytes) -> None:
    assert check_cut(message)


@given(st.lists(fields, max_size=3).map(b"".join))
def test_requests_in_pieces_are_read_as_protobuf_does(message: bytes) -> None:
    check_cut(message)


@given(st.binary() | fields.flatmap(lambda m: st.integers(0, len(m)).map(lambda end: m[:end])))
def test_bytes_that_are_no_request_are_not_read_as_one(message: bytes) -> None:
    check_cut(message)


@pytest.fixture(scope="module")
def servable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servable]:
    with plus_servable(tmp_path_factory.mktemp("m")) as servable:
        yield servable


def plus_request(request_id: str = "", rows: int = 1) -> bytes:
    x = np.arange(rows * 2, dtype="<f4").reshape(rows, 2)
    return infer_request("m", {"x": x}, id=request_id).SerializeToString()


def plain(message: bytes) -> PlainRequest:
    parts = cut(message)
    assert parts is not None
    return PlainRequest(message, parts[2], parts[1], 0, None, False, lambda _: None)


def form_of(servable: Servable, message: bytes) -> Form:
    form = Form.of(decode(message), servable)
    assert form is not None
    return form


def test_what_grew_from_the_corpus_means_the_same_to_both_ways(servable: Servable) -> None:
    seeds = [path.read_bytes() for path in sorted(CORPUS.glob("*.infer"))]
    assert len(seeds) > 5
    forms: dict[bytes, Form | None] = {}
    num_plain = num_fed = 0
    end = time.monotonic() + FUZZ_S
    for message in itertools.chain(seeds, mutations(seeds, random.Random(0))):  # noqa: S311
        num_plain += check_cut(message)
        num_fed += check_feed(message, forms, servable)
        if time.monotonic() > end:
            break
    assert num_plain > 100
    assert num_fed > 10


def check_feed(message: bytes, forms: dict[bytes, Form | None], servable: Servable) -> bool:
    """Compare tensors with those of the general way; return whether there were any."""
    parts = cut(message)
    if parts is None or not parts[1].isascii():
        return False
    if parts[0] not in forms:
        forms[parts[0]] = None
        with contextlib.suppress(ServeryError):
            forms[parts[0]] = Form.of(decode(message), servable)
    form = forms[parts[0]]
    if form is None or not form.fits(parts[2]):
        return False
    expected = bind(decode(message), servable.signature)
    got = form.feed([plain(message)])
    assert got.keys() == expected.keys()
    assert all(got[name].tobytes() == expected[name].tobytes() for name in got)
    assert all(got[name].shape == expected[name].shape for name in got)
    return True


@pytest.mark.parametrize("rows", [1, 3])
def test_requests_of_one_form_are_fed_below_each_other(servable: Servable, rows: int) -> None:
    messages = [plus_request("a", rows), plus_request("", rows), plus_request("c" * 300, rows)]
    form = form_of(servable, messages[0])
    got = form.feed([plain(message) for message in messages])
    x = np.arange(rows * 2, dtype="<f4").reshape(rows, 2)
    assert np.array_equal(got["x"], np.concatenate([x, x, x]))


@given(st.lists(st.sampled_from(["", "7", "a" * 200]), min_size=1, max_size=5), st.integers(1, 3))
def test_answers_are_the_bytes_that_protobuf_writes(
    servable: Servable, ids: list[str], rows: int
) -> None:
    messages = [plus_request(request_id, rows) for request_id in ids]
    values = np.arange(len(ids) * rows * 2, dtype=np.float32).reshape(-1, 2)
    got = form_of(servable, messages[0]).render([plain(message) for message in messages], [values])
    for index, message in enumerate(messages):
        own = Output("y", "FP32", values[index * rows : (index + 1) * rows])
        answer = Answer(servable.version, [own], Timing(0, 0, 0, 0))
        assert got[index] == encode(decode(message), answer, {})


def test_an_output_without_the_rows_of_all_is_not_shared_out(servable: Servable) -> None:
    messages = [plus_request(), plus_request()]
    form = form_of(servable, messages[0])
    with pytest.raises(NotRowWiseError):
        form.render([plain(message) for message in messages], [np.zeros((1, 2), np.float32)])


def test_what_asks_for_more_has_no_form(servable: Servable) -> None:
    names = ("parameters", "typed", "region", "texts")
    messages = {name: (CORPUS / f"{name}.infer").read_bytes() for name in names}
    forms = {name: Form.of(decode(message), servable) for name, message in messages.items()}
    assert forms == dict.fromkeys(names)

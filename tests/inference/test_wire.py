"""Cutting a field out of a message agrees with protobuf, for any message."""

import contextlib

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference import wire

RAW = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER

messages = st.builds(
    lambda model, inputs, raws, unknown: (
        pb.ModelInferRequest(
            model_name=model,
            inputs=[pb.ModelInferRequest.InferInputTensor(name=n, shape=s) for n, s in inputs],
            raw_input_contents=raws,
        ).SerializeToString()
        + unknown
    ),
    st.text(),
    st.lists(st.tuples(st.text(), st.lists(st.integers(-(2**63), 2**63 - 1)))),
    st.lists(st.binary(max_size=300)),
    st.sampled_from([b"", b"\xf8\x07\x05", b"\xf9\x07" + b"8" * 8, b"\xfd\x07" + b"4" * 4]),
)


@given(messages)
def test_rest_and_values_are_the_whole_message(message: bytes) -> None:
    whole = pb.ModelInferRequest.FromString(message)
    rest, values = wire.cut_out(message, RAW)
    assert [bytes(value) for value in values] == list(whole.raw_input_contents)
    del whole.raw_input_contents[:]
    assert pb.ModelInferRequest.FromString(rest) == whole


@given(messages, st.lists(st.binary(max_size=300)))
def test_appended_values_are_read_by_protobuf(message: bytes, values: list[bytes]) -> None:
    before = pb.ModelInferRequest.FromString(message)
    after = pb.ModelInferRequest.FromString(wire.append(message, RAW, values))
    assert list(after.raw_input_contents) == list(before.raw_input_contents) + values


@given(st.binary() | messages.flatmap(lambda m: st.integers(0, len(m)).map(lambda end: m[:end])))
def test_what_protobuf_refuses_is_refused_by_the_two_together(message: bytes) -> None:
    accepted = False
    with contextlib.suppress(DecodeError):
        pb.ModelInferRequest.FromString(message)
        accepted = True
    try:
        rest, _ = wire.cut_out(message, RAW)
        pb.ModelInferRequest.FromString(rest)
    except (wire.MalformedMessageError, DecodeError):
        return
    assert accepted


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63])
def test_a_varint_has_the_length_it_says(value: int) -> None:
    encoded = wire.encode_varint(value)
    assert encoded[-1] < 0x80
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == value

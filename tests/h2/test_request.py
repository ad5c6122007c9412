"""What a header list says about a call."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servery_h2.header_block import Fields
from servery_h2.request import Metadatum, RequestParser, parse_request
from servery_h2.response import percent_encode

HEAD: Fields = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/p.S/M"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
ANY = st.lists(
    st.sampled_from(
        [
            *HEAD,
            (b"grpc-timeout", b"5S"),
            (b"grpc-timeout", b"70m"),
            (b"grpc-timeout", b"soon"),
            (b"x-a-bin", b"!"),
            (b"x-b", b"1"),
            (b"x-b", b"2"),
            (b":unknown", b"1"),
            (b"Upper", b"1"),
        ]
    ),
    max_size=4,
)


@given(st.lists(st.tuples(ANY, ANY, st.booleans()), max_size=6))
@settings(max_examples=300, deadline=None)
def test_remembering_parts_of_a_list_changes_nothing(
    lists: list[tuple[Fields, Fields, bool]],
) -> None:
    parse = RequestParser(2_000)
    for before, after, well_formed in lists:
        fields = [*HEAD, *before, *after] if well_formed else [*before, *HEAD, *after]
        assert parse(fields) == parse_request(fields, 2_000)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1H", 3600), ("2M", 120), ("3S", 3), ("4m", 0.004), ("5u", 5e-6), ("6n", 6e-9)],
)
def test_a_deadline_is_read(text: str, seconds: float) -> None:
    head = parse_request([*HEAD, (b"grpc-timeout", text.encode())], 2_000)
    assert head.timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "S", "1", "123456789S", "-1S", "1.5S", "1s"])
def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    head = parse_request([*HEAD, (b"grpc-timeout", text.encode())], 2_000)
    assert head.refusal is not None
    assert head.refusal[0] is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto"])
def test_grpc_is_recognized(kind: str) -> None:
    assert parse_request([*HEAD[:-1], (b"content-type", kind.encode())], 2_000).http_status == 200


@pytest.mark.parametrize("kind", ["application/grpc-web", "text/html", ""])
def test_what_is_not_grpc_is_an_unsupported_media_type(kind: str) -> None:
    assert parse_request([*HEAD[:-1], (b"content-type", kind.encode())], 2_000).http_status == 415


def test_metadata_keeps_order_and_repetition() -> None:
    extra = [(b"b", b"1"), (b"a-bin", b"AP8"), (b"b", b"2"), (b"c-bin", b"AA==")]
    head = parse_request([*HEAD, *extra], 2_000)
    assert head.metadata == (
        Metadatum("b", "1"),
        Metadatum("a-bin", b"\0\xff"),
        Metadatum("b", "2"),
        Metadatum("c-bin", b"\0"),
    )


@pytest.mark.parametrize("field", [(b"x", b"a\nb"), (b"x y", b""), (b"x", b" a"), (b"x", b"\0")])
def test_what_could_smuggle_a_header_is_malformed(field: tuple[bytes, bytes]) -> None:
    assert parse_request([*HEAD, field], 2_000).malformed


@given(st.text(max_size=50))
def test_a_status_message_is_printable_ascii_whatever_it_says(text: str) -> None:
    encoded = percent_encode(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)

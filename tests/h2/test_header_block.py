"""Remembered header blocks never mean anything else than decoding them would."""

from __future__ import annotations

from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from servery_h2.faults import H2ConnectionError
from servery_h2.header_block import Fields, HeaderReader, encode_fields

NAMES = st.sampled_from([b":path", b"te", b"x-a", b"x-b", b"grpc-timeout", b"authorization"])
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=60)), max_size=8)
SIZES = st.sampled_from([0, 60, 200, 4096])


def plain(block: bytes, decoder: Decoder) -> Fields:
    fields: Any = decoder.decode(block, raw=True)
    return [(name, value) for name, value in fields]


@given(st.lists(st.tuples(FIELDS, st.booleans(), st.none() | SIZES), max_size=30))
@settings(max_examples=150, deadline=None)
def test_it_reads_what_an_encoder_wrote(
    lists: list[tuple[Fields, bool, int | None]],
) -> None:
    encoder, reader = Encoder(), HeaderReader[Fields](1 << 16, lambda fields: fields)
    for fields, huffman, size in lists:
        if size is not None:
            encoder.header_table_size = size
        assert reader.read(encoder.encode(fields, huffman=huffman)) == fields


FEW = st.lists(st.tuples(NAMES, st.sampled_from([b"1", b"2"])), min_size=1, max_size=2, unique=True)


@given(st.lists(FEW, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=12), SIZES)
@settings(max_examples=150, deadline=None)
def test_it_agrees_with_hpack_however_blocks_repeat(
    lists: list[Fields], order: list[int], size: int
) -> None:
    encoder, decoder = Encoder(), Decoder()
    encoder.header_table_size = size
    reader = HeaderReader[Fields](1 << 16, lambda fields: fields)
    for index in order:
        for _ in range(3):  # Enters the table, is remembered, is recalled.
            block = encoder.encode(lists[index % len(lists)])
            assert reader.read(block) == plain(block, decoder)


@given(st.lists(st.binary(max_size=40), max_size=12), st.lists(st.integers(0, 11), max_size=40))
@settings(max_examples=300, deadline=None)
def test_it_agrees_with_hpack_on_any_bytes(blocks: list[bytes], order: list[int]) -> None:
    decoder, reader = Decoder(1 << 16), HeaderReader[Fields](1 << 16, lambda fields: fields)
    for index in order:
        if index >= len(blocks):
            continue
        try:
            expected = plain(blocks[index], decoder)
        except Exception:
            with pytest.raises(H2ConnectionError):
                reader.read(blocks[index])
            return
        assert reader.read(blocks[index]) == expected


def test_a_block_is_remembered_until_the_table_changes() -> None:
    parsed: list[Fields] = []

    def parse(fields: Fields) -> Fields:
        parsed.append(fields)
        return fields

    encoder, known = Encoder(), HeaderReader[Fields](1 << 16, parse)
    for value in (b"1", b"2"):
        for _ in range(5):  # The same byte from the second time on, with another meaning.
            assert known.read(encoder.encode([(b"x-a", value)])) == [(b"x-a", value)]
    assert len(parsed) == 4


def test_the_memory_of_blocks_is_bounded() -> None:
    reader = HeaderReader[Fields](1 << 16, lambda fields: fields)
    for number in range(1_000):
        reader.read(encode_fields([(b"x", str(number).encode())]))
    assert len(reader.cached) <= 64


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=6))
@settings(max_examples=150, deadline=None)
def test_any_decoder_reads_what_it_encodes(fields: Fields) -> None:
    assert plain(encode_fields(fields), Decoder()) == fields

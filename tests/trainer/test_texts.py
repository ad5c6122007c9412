"""Texts become the same numbers in the graph as in Python, whatever they hold."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.spec import parse_spec
from servery_trainer.texts import BagPreprocessing, Tokenizer, TokenPreprocessing
from tests.trainer.specs import text
from tests.trainer.test_preprocessing import load_graph

TRAIN = [
    "Free entry! Win a prize, win now",
    "are you free for lunch?\nlunch is at one\tor two",
    'He said "win" (twice). Élan élan straße STRASSE',
    "",
]


def rows(*texts: str) -> dict[str, Any]:
    return {"sms": np.array([[text] for text in texts], np.object_)}


def tokenizer(*texts: str, max_tokens: int = 12, vocabulary_size: int = 100) -> Tokenizer:
    return Tokenizer.fit(
        "sms", texts or TRAIN, max_tokens=max_tokens, vocabulary_size=vocabulary_size
    )


@cache
def fitted(kind: str) -> Any:
    words = tokenizer()
    preprocessing = (
        TokenPreprocessing(tokenizer=words)
        if kind == "tokens"
        else BagPreprocessing.fit(words, rows(*TRAIN))
    )
    return preprocessing, load_graph(preprocessing)


WORDS = st.sampled_from(
    ["free", "Free,", "FREE!", "win", "?", "Élan", "STRASSE", "zebra", "\u00a0"]
)
GAPS = st.sampled_from([" ", "  ", "\n", "\t", "\r", " \n "])
SENTENCES = st.lists(st.tuples(WORDS, GAPS), max_size=40).map(
    lambda pairs: "".join(part for pair in pairs for part in pair)
)
LONG = st.tuples(st.sampled_from(["free ", "x", "\n", "win\n"]), st.integers(90, 50_000)).map(
    lambda pair: pair[0] * pair[1]
)
NUL_FREE = st.text(max_size=40)


@pytest.mark.parametrize("kind", ["tokens", "bag"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(SENTENCES | NUL_FREE | LONG, min_size=1, max_size=5))
def test_texts_come_out_equal_bit_for_bit(kind: str, texts: list[str]) -> None:
    preprocessing, graph = fitted(kind)
    served = rows(*texts)
    np.testing.assert_array_equal(graph.run(None, served)[0], preprocessing.apply(served))


def test_a_word_is_one_in_any_case_and_before_punctuation() -> None:
    numbers = tokenizer().apply(rows("free Free FREE free, FREE! fREE", "win"))
    assert numbers[0, :5].tolist() == [numbers[0, 0]] * 5
    assert numbers[0, 5] == 1  # nobody writes so
    assert numbers[1, 0] not in (0, 1, numbers[0, 0])


def test_unknown_words_are_one_and_padding_is_nought() -> None:
    words = tokenizer("free free")
    assert words.apply(rows("zebra free", ""))[:, :3].tolist() == [[1, 2], [0, 0]]


def test_the_most_frequent_words_are_known() -> None:
    words = tokenizer("a a a b b c c d", vocabulary_size=2)
    assert words.words == ("a", "b")


def test_texts_are_read_no_further_than_the_longest_that_was_trained_on() -> None:
    assert tokenizer("a b", "a b c").length == 3
    assert tokenizer("a b", "a b c", max_tokens=2).length == 2


def test_refuses_texts_without_a_word_that_occurs_twice() -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        tokenizer("one", "two", "three")
    assert refused.value.problem == Problem.MISSING_VALUE
    assert refused.value.metadata["column"] == "sms"


@pytest.mark.parametrize(
    ("task", "family", "field"),
    [
        ({"text": ""}, {}, "text_classification.text"),
        ({"text": "kind"}, {}, "text_classification.text"),
        ({"missing": 3}, {}, "text_classification.missing"),
        ({"max_tokens": 5000}, {}, "text_classification.max_tokens"),
        ({"vocabulary_size": -1}, {}, "text_classification.vocabulary_size"),
        ({}, {"convolutional": {}}, "convolutional"),
        ({}, {"transformer": {"heads": 5}}, "transformer.heads"),
        ({}, {"recurrent": {"cell": 9}}, "recurrent.cell"),
        ({}, {"embedding": {"dropout": 1}}, "embedding.dropout"),
    ],
)
def test_refuses_specs_that_cannot_be(
    task: dict[str, Any], family: dict[str, Any], field: str
) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(text(family, **task))
    assert refused.value.metadata["field"] == f"training_job.spec.{field}"


@pytest.mark.parametrize("family", ["dense", "embedding", "recurrent", "transformer"])
def test_a_spec_says_all_defaults(family: str) -> None:
    spec = parse_spec(text({family: {}}))
    assert spec.family.name == family
    assert parse_spec(spec.to_proto()) == spec

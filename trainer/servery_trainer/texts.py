"""How texts become numbers, fitted once and written twice like `preprocessing`.

The tokeniser is made of ONNX operators, and these can split and look up, but not change a string:
that a word is the same in capitals and before a comma is therefore part of the vocabulary, as
several spellings of one word.

Shape suffixes: B rows, T tokens, V words.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.encoders import text_input
from servery_trainer.preprocessing import FloatArray, GraphPart, initializers

PADDING: Final = 0
UNKNOWN: Final = 1
FIRST_WORD: Final = 2

MIN_OCCURRENCES: Final = 2
"""Rarer words of the training part are unknown ones: so what these mean is trained, too."""

_PUNCTUATION: Final = ".,!?;:\"'()[]<>*-_"
_ENDS: Final = ("", ".", ",", "!", "?")
_BREAKS: Final = ("\n", "\r", "\t")
_MOST_BREAKS: Final = 32
"""Of each kind, from the beginning of a text; a further one does not end a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """Cuts a text into words and looks up their numbers."""

    column: str
    words: tuple[str, ...]
    """By number, from `FIRST_WORD`: the most frequent first."""
    spellings: Mapping[str, int]
    """The number of each way to write a word."""
    length: int
    """Tokens of a text that are read."""
    breaks: tuple[str, ...]
    """What ends a word beside a space."""

    @classmethod
    def fit(
        cls, column: str, texts: Iterable[str], *, max_tokens: int, vocabulary_size: int
    ) -> Self:
        """Learn the words of the training part.

        Raises:
            DatasetInvalidError: No word occurs twice.
        """
        texts = list(texts)
        breaks = tuple(mark for mark in _BREAKS if any(mark in text for text in texts))
        forms: Counter[str] = Counter()
        length = 1
        for text in texts:
            tokens = _split(text, breaks, max_tokens)
            forms.update(tokens)
            length = max(length, len(tokens))
        counts: Counter[str] = Counter()
        for form, count in forms.items():
            counts[_word(form)] += count
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        often = [word for word, count in ranked if count >= MIN_OCCURRENCES]
        words = tuple(often[:vocabulary_size])
        if not words:
            raise DatasetInvalidError(
                Problem.MISSING_VALUE,
                f"no word of column {column!r} occurs twice in the training part; add rows, or"
                " learn from another column",
                column=column,
            )
        return cls(
            column=column,
            words=words,
            spellings=_spellings(words, forms),
            length=length,
            breaks=breaks,
        )

    @property
    def size(self) -> int:
        """How many numbers there are: padding, unknown and the words."""
        return FIRST_WORD + len(self.words)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Return the numbers [B, T] of the tokens of these rows."""
        texts = inputs[self.column][:, 0].tolist()
        ids_B = np.full((len(texts), self.length), PADDING, np.int64)
        for row, text in enumerate(texts):
            tokens = _split(text, self.breaks, self.length)
            ids_B[row, : len(tokens)] = [self.spellings.get(token, UNKNOWN) for token in tokens]
        return ids_B

    def to_onnx(self, ids: str, prefix: str) -> GraphPart:
        """Write the same as ONNX nodes: the tensor `ids` holds the numbers."""
        constants: dict[str, Any] = {
            f"{prefix}column": np.array([1]),
            f"{prefix}padding": np.array([0, 0, 0, self.length]),
            f"{prefix}start": np.array([0]),
            f"{prefix}end": np.array([self.length]),
            f"{prefix}axis": np.array([1]),
        }
        nodes: list[onnx.NodeProto] = []
        text = self.column
        for index, mark in enumerate(self.breaks):
            text = _replace_by_space(text, mark, f"{prefix}break{index}/", nodes, constants)
        names = ("split", "count", "tokens", "unpadded", "padded")
        split, number, tokens, unpadded, padded = (f"{prefix}{name}" for name in names)
        bounds = [f"{prefix}{name}" for name in ("start", "end", "axis")]
        spellings = {"": PADDING, **self.spellings}
        nodes += [
            helper.make_node("StringSplit", [text], [split, number], maxsplit=self.length),
            helper.make_node("Squeeze", [split, f"{prefix}column"], [tokens]),
            helper.make_node(
                "LabelEncoder",
                [tokens],
                [unpadded],
                domain="ai.onnx.ml",
                keys_strings=list(spellings),
                values_int64s=list(spellings.values()),
                default_int64=UNKNOWN,
            ),
            helper.make_node("Pad", [unpadded, f"{prefix}padding"], [padded]),
            helper.make_node("Slice", [padded, *bounds], [ids]),
        ]
        return GraphPart(
            inputs=[text_input(self.column)],
            nodes=nodes,
            initializers=initializers(constants),
            opset=20,
        )


def _split(text: str, breaks: Iterable[str], most: int) -> list[str]:
    for mark in breaks:
        text = text.replace(mark, " ", _MOST_BREAKS)
    return [token for token in text.split(" ") if token][:most]


def _word(token: str) -> str:
    return token.strip(_PUNCTUATION).lower() or token


def _spellings(words: Iterable[str], forms: Iterable[str]) -> dict[str, int]:
    numbers = {word: number for number, word in enumerate(words, start=FIRST_WORD)}
    spellings = {form: numbers[_word(form)] for form in sorted(forms) if _word(form) in numbers}
    for word, number in numbers.items():
        for cased in (word, word.capitalize(), word.upper()):
            for end in _ENDS:
                spellings.setdefault(cased + end, number)
    return spellings


def _replace_by_space(
    text: str,
    mark: str,
    prefix: str,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
) -> str:
    """Add what does `text.replace(mark, " ", _MOST_BREAKS)` on texts [B, 1]; return its result."""
    constants |= {
        f"{prefix}none": np.zeros((1, 1, _MOST_BREAKS + 1), np.bool_),
        f"{prefix}empty": np.array([""], np.object_),
        f"{prefix}space": np.array([" "], np.object_),
        f"{prefix}first": np.array([0]),
        f"{prefix}last": np.array([_MOST_BREAKS + 1]),
        f"{prefix}axis": np.array([2]),
        f"{prefix}column": np.array([-1, 1, 1]),
        f"{prefix}flat": np.array([-1, 1]),
    }
    pieces = [f"{prefix}piece{index}" for index in range(_MOST_BREAKS + 1)]
    nodes += [
        helper.make_node(
            "StringSplit",
            [text],
            [f"{prefix}parts", f"{prefix}count"],
            delimiter=mark,
            maxsplit=_MOST_BREAKS,
        ),
        # as many empty texts as parts may lack
        helper.make_node("Reshape", [text, f"{prefix}column"], [f"{prefix}texts"]),
        helper.make_node(
            "Where", [f"{prefix}none", f"{prefix}texts", f"{prefix}empty"], [f"{prefix}more"]
        ),
        helper.make_node("Concat", [f"{prefix}parts", f"{prefix}more"], [f"{prefix}all"], axis=2),
        helper.make_node(
            "Slice",
            [f"{prefix}all", f"{prefix}first", f"{prefix}last", f"{prefix}axis"],
            [f"{prefix}enough"],
        ),
        helper.make_node("StringConcat", [f"{prefix}enough", f"{prefix}space"], [f"{prefix}apart"]),
        helper.make_node("Split", [f"{prefix}apart"], pieces, axis=2, num_outputs=len(pieces)),
    ]
    joined = pieces[0]
    for index, piece in enumerate(pieces[1:]):
        nodes.append(helper.make_node("StringConcat", [joined, piece], [f"{prefix}joined{index}"]))
        joined = f"{prefix}joined{index}"
    nodes.append(helper.make_node("Reshape", [joined, f"{prefix}flat"], [f"{prefix}text"]))
    return f"{prefix}text"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPreprocessing:
    """The numbers of the words in their order, for a network that embeds them."""

    tokenizer: Tokenizer

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return (self.tokenizer.length,)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        return self.tokenizer.apply(inputs).astype(np.float32)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        part = self.tokenizer.to_onnx(f"{prefix}ids", prefix)
        cast = helper.make_node("Cast", [f"{prefix}ids"], [features], to=onnx.TensorProto.FLOAT)
        return GraphPart(
            inputs=part.inputs,
            nodes=[*part.nodes, cast],
            initializers=part.initializers,
            opset=part.opset,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BagPreprocessing:
    """How often each word occurs, whatever the order, weighed by how rare it is.

    The feature of a word is its number of occurrences, times its inverse document frequency
    (Spärck Jones, 1972), over the square root of the number of tokens.
    """

    tokenizer: Tokenizer
    weights: FloatArray
    """log((1 + rows) / (1 + rows with the word)) + 1, [V]."""

    @classmethod
    def fit(cls, tokenizer: Tokenizer, train: Mapping[str, NDArray[Any]]) -> Self:
        """Weigh the words by the training part."""
        ids_B = tokenizer.apply(train)
        rows_with = np.zeros(tokenizer.size, np.int64)
        for row in ids_B:
            rows_with[np.unique(row)] += 1
        weights = np.log((1 + len(ids_B)) / (1 + rows_with[FIRST_WORD:])) + 1
        return cls(tokenizer=tokenizer, weights=weights.astype(np.float32))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return (len(self.weights),)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        ids_B = self.tokenizer.apply(inputs)
        counts = np.zeros((len(ids_B), self.tokenizer.size), np.float32)
        np.add.at(counts, (np.arange(len(ids_B))[:, None], ids_B), np.float32(1))
        tokens = (ids_B != PADDING).sum(axis=1, keepdims=True)
        features: FloatArray = counts[:, FIRST_WORD:] * self.weights * self._shares()[tokens]
        return features

    def _shares(self) -> FloatArray:
        """Return what to multiply by, by number of tokens.

        A table, to depend on nobody's way to round a root.
        """
        roots = np.sqrt(np.maximum(np.arange(self.tokenizer.length + 1), 1))
        return (1 / roots).astype(np.float32)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        ids, counts, there, ones, number, share, shares, weighed, weights = (
            f"{prefix}{name}"
            for name in (
                "ids",
                "counts",
                "there",
                "ones",
                "number",
                "share",
                "shares",
                "weighed",
                "weights",
            )
        )
        part = self.tokenizer.to_onnx(ids, prefix)
        words = len(self.weights)
        nodes = [
            helper.make_node(
                "TfIdfVectorizer",
                [ids],
                [counts],
                mode="TF",  # with weights, ONNX Runtime adds these up, and sums round
                min_gram_length=1,
                max_gram_length=1,
                max_skip_count=0,
                ngram_counts=[0],
                ngram_indexes=list(range(words)),
                pool_int64s=list(range(FIRST_WORD, FIRST_WORD + words)),
            ),
            helper.make_node("Cast", [ids], [there], to=onnx.TensorProto.BOOL),
            helper.make_node("Cast", [there], [ones], to=onnx.TensorProto.INT64),
            helper.make_node("ReduceSum", [ones, f"{prefix}axis"], [number], keepdims=1),
            helper.make_node("Gather", [shares, number], [share]),
            helper.make_node("Mul", [counts, weights], [weighed]),
            helper.make_node("Mul", [weighed, share], [features]),
        ]
        table = initializers({shares: self._shares(), weights: self.weights})
        return GraphPart(
            inputs=part.inputs,
            nodes=[*part.nodes, *nodes],
            initializers=[*part.initializers, *table],
            opset=part.opset,
        )

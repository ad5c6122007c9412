"""How columns of text become numbers, fitted once and written twice like `preprocessing`.

Shape suffixes: B rows.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from servery_trainer.columns import DATE_PATTERN
from servery_trainer.imputation import TextFill
from servery_trainer.preprocessing import BATCH, FloatArray, GraphPart, initializers

MAX_CATEGORIES: Final = 1000
MIN_OCCURRENCES: Final = 2
"""Rarer values of the training part are in the bucket of unknown ones: so it is trained, too."""

_BOOLEANS: Final = ("true", "false")
_DATE: Final = re.compile(DATE_PATTERN)
_EPOCH: Final = "1970-01-01"
_WEEKDAY_OF_DAY_0: Final = 2  # 1 March of the year 0 was a Wednesday
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryEncoder:
    """Turns each value into one feature that is 1, and those of the other values 0.

    A value that is not in the vocabulary sets the feature of the unknown bucket; if no row of the
    training part was in it, there is no such feature, and all are 0.
    """

    column: str
    vocabulary: tuple[str, ...]
    fill: str | None
    """What a missing value becomes. None: unknown."""
    unknown_bucket: bool
    spellings: Mapping[str, str]
    """Other ways to write a value of the vocabulary."""

    @classmethod
    def fit(cls, column: str, values_B: NDArray[np.object_], fill: TextFill | None) -> Self:
        """Fit the texts of the training part, at least one row.

        Raises:
            DatasetInvalidError: `fill` needs a value, and there is none.
        """
        filled = fill(column, values_B) if fill else None
        counts = Counter(text or filled or "" for text in values_B.tolist())
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        often = [text for text, count in ranked if text and count >= MIN_OCCURRENCES]
        vocabulary = tuple(often[:MAX_CATEGORIES])
        return cls(
            column=column,
            vocabulary=vocabulary,
            fill=filled,
            unknown_bucket=len(vocabulary) < len(counts),
            spellings={},
        )

    @classmethod
    def fit_booleans(
        cls, column: str, values_B: NDArray[np.object_], fill: TextFill | None
    ) -> Self:
        """Fit `true`, `false` and missing values; `True` and `TRUE` are the same as `true`.

        Raises:
            DatasetInvalidError: `fill` needs a value, and there is none.
        """
        return cls(
            column=column,
            vocabulary=_BOOLEANS,
            fill=fill(column, values_B) if fill else None,
            unknown_bucket=False,
            spellings={
                spelling: text for text in _BOOLEANS for spelling in (text.title(), text.upper())
            },
        )

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return (len(self.vocabulary) + self.unknown_bucket,)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        codes, texts = self._codes(), inputs[self.column][:, 0].tolist()
        codes_B = np.array([codes.get(text, 0) for text in texts], np.int64)
        features: FloatArray = (codes_B[:, None] == self._features()).astype(np.float32)
        return features

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        code, hit, known = (f"{prefix}{name}" for name in ("code", "hit", "features"))
        codes = self._codes()
        return GraphPart(
            inputs=[text_input(self.column)],
            nodes=[
                helper.make_node(
                    "LabelEncoder",
                    [self.column],
                    [code],
                    domain="ai.onnx.ml",
                    keys_strings=list(codes),
                    values_int64s=list(codes.values()),
                    default_int64=0,
                ),
                helper.make_node("Equal", [code, known], [hit]),
                helper.make_node("Cast", [hit], [features], to=onnx.TensorProto.FLOAT),
            ],
            initializers=initializers({known: self._features()}),
        )

    def _codes(self) -> dict[str, int]:
        """Return the code of each text; unknown ones have 0."""
        codes = {text: code for code, text in enumerate(self.vocabulary, start=1)}
        codes |= {spelling: codes[text] for spelling, text in self.spellings.items()}
        return codes | {"": codes.get(self.fill or "", 0)}

    def _features(self) -> NDArray[np.int64]:
        """Return the code that each feature stands for."""
        return np.arange(0 if self.unknown_bucket else 1, len(self.vocabulary) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DateEncoder:
    """Turns a date into its standardised time and its places in the week and in the year.

    The features are: time, and sine and cosine of day of the week and of the month. A text that is
    no date is missing. 30 February is 1 or 2 March.
    """

    column: str
    fill: str | None
    """The date that a missing one becomes. None: its features are NaN."""
    mean_s: int
    """In seconds since 1 March of the year 0."""
    deviation_s: np.float32

    @classmethod
    def fit(cls, column: str, values_B: NDArray[np.object_], fill: TextFill | None) -> Self:
        """Fit the dates of the training part, at least one row.

        Raises:
            DatasetInvalidError: `fill` needs a value, and there is none.
        """
        filled = fill(column, values_B) if fill else None
        present = [text or filled for text in values_B.tolist()]
        seconds_B = _seconds(_fields([text for text in present if text])).astype(np.float64)
        mean = round(float(seconds_B.mean()))
        deviation = np.float32(np.sqrt(np.square(seconds_B - mean).mean()))
        return cls(
            column=column,
            fill=filled,
            mean_s=mean,
            deviation_s=np.float32(1) if deviation == 0 else deviation,
        )

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return (5,)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        texts = inputs[self.column][:, 0].tolist()
        valid_B = np.array([bool(_DATE.fullmatch(text)) for text in texts], np.bool_)
        default = self.fill or _EPOCH
        fields = _fields(
            [text if valid else default for text, valid in zip(texts, valid_B, strict=True)]
        )
        seconds_B = _seconds(fields)
        weekday_B = (seconds_B // _DAY_S + _WEEKDAY_OF_DAY_0) % 7
        time_B = (seconds_B - self.mean_s).astype(np.float32) / self.deviation_s
        features = np.concatenate(
            [time_B[:, None], _circle(7)[weekday_B], _circle(12)[fields[:, 1] - 1]], axis=1
        )
        return features if self.fill else np.where(valid_B[:, None], features, np.float32("nan"))

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        return _DateGraph(self, features, prefix).part()


def _fields(dates: list[str]) -> NDArray[np.int64]:
    """Split dates into year, month, day, hour, minute and second, [B, 6]."""
    rows = [[int(number) for number in re.split("[-T :]", date)] for date in dates]
    return np.array([row + [0] * (6 - len(row)) for row in rows], np.int64).reshape(-1, 6)


def _seconds(fields: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the seconds since 1 March of the year 0, by the rules of the Gregorian calendar."""
    year, month, day, hour, minute, second = fields.T  # [B, 6]
    year = year - (month <= 2)  # a year that begins in March ends with the leap day
    days_before = (153 * ((month + 9) % 12) + 2) // 5
    days = 365 * year + year // 4 - year // 100 + year // 400 + days_before + day - 1
    seconds: NDArray[np.int64] = ((days * 24 + hour) * 60 + minute) * 60 + second
    return seconds


def _circle(places: int) -> FloatArray:
    angles = np.arange(places) * (2 * np.pi / places)
    return np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class _DateGraph:
    """The nodes of a `DateEncoder`; each method adds some and returns what they make."""

    def __init__(self, encoder: DateEncoder, features: str, prefix: str) -> None:
        self._encoder = encoder
        self._features = features
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Any] = {}

    def part(self) -> GraphPart:
        column, fill = self._encoder.column, self._encoder.fill
        valid = self._node("RegexFullMatch", column, pattern=DATE_PATTERN)
        text = self._node("Where", valid, column, self._text(fill or _EPOCH))
        day, clock = self._halves(text)
        year, month, day_of_month = self._numbers(day, "-")
        time = self._numbers(self._node("StringConcat", clock, self._text(":00")), ":")
        days = self._days(year, month, day_of_month)
        seconds = days
        for factor, part in zip((24, 60, 60), time, strict=True):
            seconds = self._add(self._multiply(seconds, factor), part)
        centred = self._node("Sub", seconds, self._number(self._encoder.mean_s))
        centred = self._node("Cast", centred, to=onnx.TensorProto.FLOAT)
        deviation = self._constant(self._encoder.deviation_s.reshape(1))
        weekday = self._node("Mod", self._add(days, _WEEKDAY_OF_DAY_0), self._number(7))
        parts = [
            self._node("Div", centred, deviation),
            self._on_circle(weekday, 7),
            self._on_circle(self._add(month, -1), 12),
        ]
        if fill:
            self._name(self._node("Concat", *parts, axis=1))
        else:
            joined = self._node("Concat", *parts, axis=1)
            nothing = self._constant(np.array([np.nan], np.float32))
            self._name(self._node("Where", valid, joined, nothing))
        return GraphPart(
            inputs=[text_input(column)],
            nodes=self._nodes,
            initializers=initializers(self._constants),
            opset=20,
        )

    def _halves(self, text: str) -> tuple[str, str]:
        """Split dates with T, a space or no time into day and time, [B, 1, 1] each."""
        with_t = self._node("StringConcat", text, self._text("T"))
        parts = self._node("StringSplit", with_t, outputs=2, delimiter="T")
        day = self._node("StringConcat", self._at(parts, 0), self._text(" "))
        joined = self._node("StringConcat", day, self._at(parts, 1))
        joined = self._node("StringConcat", joined, self._text(" 00:00:00"))
        words = self._node("StringSplit", joined, outputs=2)  # any number of spaces divides
        words = self._node("Reshape", words, self._constant(np.array([0, 1, -1])))
        return self._at(words, 0), self._at(words, 1)

    def _numbers(self, text: str, delimiter: str) -> tuple[str, str, str]:
        """Read the first three numbers of texts [B, 1, 1], [B, 1] each."""
        parts = self._node("StringSplit", text, outputs=2, delimiter=delimiter)
        parts = self._node("Reshape", parts, self._constant(np.array([0, 1, -1])))
        first, second, third = (
            self._node(
                "Cast",
                self._node("Reshape", self._at(parts, place), self._constant(np.array([-1, 1]))),
                to=onnx.TensorProto.INT64,
            )
            for place in range(3)
        )
        return first, second, third

    def _days(self, year: str, month: str, day: str) -> str:
        early = self._node("LessOrEqual", month, self._number(2))
        year = self._node("Sub", year, self._node("Cast", early, to=onnx.TensorProto.INT64))
        shifted = self._node("Mod", self._add(month, 9), self._number(12))
        month_days = self._divide(self._add(self._multiply(shifted, 153), 2), 5)
        leaps = self._node("Sub", self._divide(year, 4), self._divide(year, 100))
        leaps = self._add(leaps, self._divide(year, 400))
        days = self._add(self._multiply(year, 365), leaps)
        return self._add(self._add(self._add(days, month_days), day), -1)

    def _on_circle(self, place: str, places: int) -> str:
        pair = self._node("Gather", self._constant(_circle(places)), place, axis=0)
        return self._node("Reshape", pair, self._constant(np.array([-1, 2])))

    def _at(self, parts: str, place: int) -> str:
        bounds = [self._constant(np.array([n])) for n in (place, place + 1, 2)]
        return self._node("Slice", parts, *bounds)

    def _add(self, value: str, other: str | int) -> str:
        return self._node("Add", value, other if isinstance(other, str) else self._number(other))

    def _multiply(self, value: str, factor: int) -> str:
        return self._node("Mul", value, self._number(factor))

    def _divide(self, value: str, divisor: int) -> str:
        return self._node("Div", value, self._number(divisor))

    def _number(self, value: int) -> str:
        return self._constant(np.array([value], np.int64))

    def _text(self, value: str) -> str:
        return self._constant(np.array([value], np.object_))

    def _constant(self, value: NDArray[Any]) -> str:
        name = f"{self._prefix}constant{len(self._constants)}"
        self._constants[name] = value
        return name

    def _node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{self._prefix}step{len(self._nodes)}.{n}" for n in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0]

    def _name(self, value: str) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [self._features]))


def text_input(name: str) -> onnx.ValueInfoProto:
    """Declare a column of texts."""
    return helper.make_tensor_value_info(name, onnx.TensorProto.STRING, [BATCH, 1])

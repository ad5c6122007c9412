"""Chooses the preprocessing of a job and fits it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1.dataset_pb2 import ColumnType
from servery_trainer.clipping import Clip
from servery_trainer.encoders import MAX_CATEGORIES, CategoryEncoder, DateEncoder
from servery_trainer.imputation import Imputation
from servery_trainer.networks import Dense, Family
from servery_trainer.numbering import Numbering
from servery_trainer.preprocessing import (
    ArrayPreprocessing,
    JoinedPreprocessing,
    Preprocessing,
    TablePreprocessing,
)
from servery_trainer.recommendation_task import RecommendationTask
from servery_trainer.spec import Spec
from servery_trainer.tasks import ImageTask, TabularTask, TextTask
from servery_trainer.texts import BagPreprocessing, Tokenizer, TokenPreprocessing


def fit_preprocessing(
    spec: Spec,
    types: Mapping[str, ColumnType.ValueType],
    train: Mapping[str, NDArray[Any]],
) -> Preprocessing:
    """Fit what `spec` asks for on the training part, and nothing else.

    Args:
        spec: What to learn.
        types: What the columns of a table are; empty for images.
        train: The inputs of the training part, at least one row.

    Raises:
        DatasetInvalidError: A column to impute has no value in the training part, or its texts have
            no word that occurs twice.
    """
    if isinstance(spec.task, TabularTask):
        imputation = Imputation.of(spec.task.missing, spec.task.fill)
        return fit_columns(types, train, imputation, spec.task.clip)
    if isinstance(spec.task, TextTask):
        return fit_text(spec.task, spec.family, train)
    if isinstance(spec.task, RecommendationTask):
        return Numbering.fit(spec.task.user, train[spec.task.user][:, 0])
    ((name, values),) = train.items()
    return ArrayPreprocessing.fit(name, values, by_channel=not isinstance(spec.task, ImageTask))


def fit_text(
    task: TextTask, family: Family, train: Mapping[str, NDArray[Any]]
) -> BagPreprocessing | TokenPreprocessing:
    """Fit the preprocessing of texts; see `fit_preprocessing`."""
    tokenizer = Tokenizer.fit(
        task.text,
        train[task.text].ravel().tolist(),
        max_tokens=task.max_tokens,
        vocabulary_size=task.vocabulary_size,
    )
    if isinstance(family, Dense):
        return BagPreprocessing.fit(tokenizer, train)
    return TokenPreprocessing(tokenizer=tokenizer)


def vocabulary_size(preprocessing: Preprocessing) -> int:
    """Return how many different numbers there are if the features number texts, else 0."""
    if isinstance(preprocessing, Numbering):
        return preprocessing.size
    if isinstance(preprocessing, TokenPreprocessing):
        return preprocessing.tokenizer.size
    return 0


def fit_columns(
    types: Mapping[str, ColumnType.ValueType],
    train: Mapping[str, NDArray[Any]],
    imputation: Imputation | None,
    clip: Mapping[str, Clip] | None = None,
) -> Preprocessing:
    """Fit the preprocessing of a table; see `fit_preprocessing`."""
    parts: list[Preprocessing] = []
    numbers = {name: values for name, values in train.items() if values.dtype != np.object_}
    if numbers:
        fill = imputation.number if imputation else None
        parts.append(TablePreprocessing.fit(numbers, fill=fill, clip=clip))
    for name in train:
        if name in numbers:
            continue
        parts.append(_fit_text(name, types[name], train[name][:, 0], imputation))
    if len(parts) == 1:
        return parts[0]
    return JoinedPreprocessing(parts=parts, columns=tuple(train))


def most_features(kind: ColumnType.ValueType, values: NDArray[Any]) -> int:
    """Return how many features a column becomes at most, whatever part it is fitted on."""
    if kind == dataset_pb2.COLUMN_TYPE_TEXT:
        return min(len(set(values.ravel().tolist())), MAX_CATEGORIES) + 1
    known: dict[int, int] = {dataset_pb2.COLUMN_TYPE_BOOLEAN: 2, dataset_pb2.COLUMN_TYPE_DATE: 5}
    return known.get(kind, 1)


def _fit_text(
    name: str,
    kind: ColumnType.ValueType,
    values_B: NDArray[np.object_],
    imputation: Imputation | None,
) -> Preprocessing:
    fill = imputation.text(kind) if imputation else None
    if kind == dataset_pb2.COLUMN_TYPE_DATE:
        return DateEncoder.fit(name, values_B, fill)
    if kind == dataset_pb2.COLUMN_TYPE_BOOLEAN:
        return CategoryEncoder.fit_booleans(name, values_B, fill)
    return CategoryEncoder.fit(name, values_B, fill)

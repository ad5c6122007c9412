"""What a training job is to do, parsed: every value in its range, every default filled in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from servery.trainer.v1 import dataset_pb2, training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import ALIAS, AliasName, DatasetName, ModelName
from servery_trainer.fields import count
from servery_trainer.hyperparameters import Optimization, Training

ROOT: Final = "training_job.spec"


@dataclass(frozen=True, slots=True, kw_only=True)
class TabularTask:
    """Learn the class of a row from its numeric columns."""

    target: str
    features: tuple[str, ...]
    """Empty: every column but the target."""
    missing: training_pb2.MissingPolicy.ValueType
    duplicates: training_pb2.DuplicatePolicy.ValueType

    name: ClassVar = "tabular_classification"
    dataset_format: ClassVar = dataset_pb2.DATASET_FORMAT_CSV


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """Learn the class of an image from its pixels."""

    images: str
    labels: str
    duplicates: training_pb2.DuplicatePolicy.ValueType

    name: ClassVar = "image_classification"
    dataset_format: ClassVar = dataset_pb2.DATASET_FORMAT_NPZ


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """Hidden layers with ReLU."""

    hidden_units: tuple[int, ...]
    dropout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolutional:
    """Blocks of convolution, ReLU and pooling, then a dense layer."""

    filters: tuple[int, ...]
    dense_units: int
    dropout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Everything that decides what a job makes. Two equal specs on one machine train alike."""

    dataset: DatasetName
    task: TabularTask | ImageTask
    family: Dense | Convolutional
    validation_fraction: float
    test_fraction: float
    training: Training
    optimization: Optimization
    model: ModelName
    alias: AliasName | None

    def to_proto(self) -> training_pb2.TrainingSpec:
        """Render it with every default written out; `parse_spec` gives an equal spec back."""
        spec = training_pb2.TrainingSpec(
            dataset=str(self.dataset),
            split=training_pb2.Split(
                validation_fraction=self.validation_fraction, test_fraction=self.test_fraction
            ),
            training=self.training.to_proto(),
            optimization=self.optimization.to_proto(),
            publication=training_pb2.Publication(
                model=str(self.model), alias=self.alias.alias if self.alias else ""
            ),
        )
        match self.task:
            case TabularTask(target=target, features=features, missing=missing):
                spec.tabular_classification.CopyFrom(
                    training_pb2.TabularClassification(
                        target=target,
                        features=features,
                        missing=missing,
                        duplicates=self.task.duplicates,
                    )
                )
            case ImageTask(images=images, labels=labels, duplicates=duplicates):
                spec.image_classification.CopyFrom(
                    training_pb2.ImageClassification(
                        images=images, labels=labels, duplicates=duplicates
                    )
                )
        match self.family:
            case Dense(hidden_units=hidden_units, dropout=dropout):
                spec.dense.CopyFrom(
                    training_pb2.DenseFamily(hidden_units=hidden_units, dropout=dropout)
                )
            case Convolutional(filters=filters, dense_units=dense_units, dropout=dropout):
                spec.convolutional.CopyFrom(
                    training_pb2.ConvolutionalFamily(
                        filters=filters, dense_units=dense_units, dropout=dropout
                    )
                )
        return spec


def parse_spec(spec: training_pb2.TrainingSpec) -> Spec:
    """Parse what a caller asks for.

    Raises:
        FieldInvalidError: A field is malformed or out of its range, or the family does not fit the
            task.
    """
    dataset = DatasetName.parse(spec.dataset, f"{ROOT}.dataset")
    task = _task(spec)
    model, alias = _publication(spec.publication)
    validation = _fraction(spec.split, "validation_fraction")
    test = _fraction(spec.split, "test_fraction")
    if validation + test >= 1:
        rule = "leave rows to train on: both fractions together must be below 1"
        raise FieldInvalidError(f"{ROOT}.split.test_fraction", test, rule)
    return Spec(
        dataset=dataset,
        task=task,
        family=_family(spec, task),
        validation_fraction=validation,
        test_fraction=test,
        training=Training.parse(spec.training, f"{ROOT}.training"),
        optimization=Optimization.parse(spec.optimization, f"{ROOT}.optimization"),
        model=model,
        alias=alias,
    )


def _task(spec: training_pb2.TrainingSpec) -> TabularTask | ImageTask:
    match spec.WhichOneof("task"):
        case "tabular_classification":
            return _tabular(spec.tabular_classification)
        case "image_classification":
            return _image(spec.image_classification)
        case _:
            raise FieldInvalidError(
                f"{ROOT}.task", "", "be tabular_classification or image_classification"
            )


def _tabular(task: training_pb2.TabularClassification) -> TabularTask:
    path = f"{ROOT}.tabular_classification"
    if not task.target:
        raise FieldInvalidError(f"{path}.target", "", "name the column that holds the class")
    for index, feature in enumerate(task.features):
        field = f"{path}.features[{index}]"
        if not feature:
            raise FieldInvalidError(field, feature, "name a column")
        if feature == task.target:
            raise FieldInvalidError(field, feature, "be another column than the target")
        if feature in task.features[:index]:
            raise FieldInvalidError(field, feature, "be named once")
    return TabularTask(
        target=task.target,
        features=tuple(task.features),
        missing=training_pb2.MissingPolicy.ValueType(
            _policy(
                task.missing,
                training_pb2.MissingPolicy.values(),
                training_pb2.MISSING_POLICY_REFUSE,
                f"{path}.missing",
            )
        ),
        duplicates=_duplicates(task.duplicates, path),
    )


def _image(task: training_pb2.ImageClassification) -> ImageTask:
    path = f"{ROOT}.image_classification"
    images, labels = task.images or "images", task.labels or "labels"
    if images == labels:
        raise FieldInvalidError(f"{path}.labels", labels, "be another array than the images")
    return ImageTask(images=images, labels=labels, duplicates=_duplicates(task.duplicates, path))


def _duplicates(
    value: training_pb2.DuplicatePolicy.ValueType, path: str
) -> training_pb2.DuplicatePolicy.ValueType:
    return training_pb2.DuplicatePolicy.ValueType(
        _policy(
            value,
            training_pb2.DuplicatePolicy.values(),
            training_pb2.DUPLICATE_POLICY_REFUSE,
            f"{path}.duplicates",
        )
    )


def _policy(value: int, known: Sequence[int], default: int, field: str) -> int:
    if value not in known:
        raise FieldInvalidError(field, value, "be a policy this server knows")
    return value or default


def _family(
    spec: training_pb2.TrainingSpec, task: TabularTask | ImageTask
) -> Dense | Convolutional:
    tabular = isinstance(task, TabularTask)
    chosen = spec.WhichOneof("family") or ("dense" if tabular else "convolutional")
    path = f"{ROOT}.{chosen}"
    if chosen == "dense":
        units = tuple(spec.dense.hidden_units) or (64, 32)
        _each(units, 4096, 16, f"{path}.hidden_units")
        return Dense(hidden_units=units, dropout=_dropout(spec.dense, 0.1, path))
    if tabular:
        raise FieldInvalidError(path, "convolutional", "be dense: tables have no pixels")
    convolutional = spec.convolutional
    filters = tuple(convolutional.filters) or (32, 64)
    _each(filters, 1024, 8, f"{path}.filters")
    return Convolutional(
        filters=filters,
        dense_units=count(convolutional.dense_units, 64, 4096, f"{path}.dense_units"),
        dropout=_dropout(convolutional, 0.25, path),
    )


def _publication(publication: training_pb2.Publication) -> tuple[ModelName, AliasName | None]:
    path = f"{ROOT}.publication"
    model = ModelName.parse(publication.model, f"{path}.model")
    if not publication.alias:
        return model, None
    if not re.fullmatch(ALIAS, publication.alias):
        raise FieldInvalidError(f"{path}.alias", publication.alias, f"match {ALIAS}")
    return model, AliasName(model, publication.alias)


def _each(sizes: Sequence[int], most: int, most_layers: int, field: str) -> None:
    if len(sizes) > most_layers:
        raise FieldInvalidError(field, len(sizes), f"hold at most {most_layers} sizes")
    for index, size in enumerate(sizes):
        if not 1 <= size <= most:
            raise FieldInvalidError(f"{field}[{index}]", size, f"be 1 to {most}")


def _dropout(
    family: training_pb2.DenseFamily | training_pb2.ConvolutionalFamily, default: float, path: str
) -> float:
    dropout = family.dropout if family.HasField("dropout") else default
    if not 0 <= dropout <= 0.9:
        raise FieldInvalidError(f"{path}.dropout", dropout, "be 0 to 0.9")
    return dropout


def _fraction(
    split: training_pb2.Split, name: Literal["validation_fraction", "test_fraction"]
) -> float:
    fraction: float = getattr(split, name) if split.HasField(name) else 0.15
    if not 0 < fraction <= 0.5:
        raise FieldInvalidError(f"{ROOT}.split.{name}", fraction, "be over 0 and at most 0.5")
    return fraction

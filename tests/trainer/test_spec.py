"""A spec is parsed whole or refused by field."""

import math

import pytest
from google.protobuf import json_format

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.networks import Convolutional, Dense
from servery_trainer.spec import parse_spec
from tests.trainer.specs import MODEL, image, table, tabular


def test_fills_in_the_defaults_of_the_contract() -> None:
    spec = parse_spec(tabular())
    assert spec.family == Dense(hidden_units=(256, 128), dropout=0.2)
    assert (spec.split.validation_fraction, spec.split.test_fraction) == (0.15, 0.15)
    training = spec.training
    assert (training.max_epochs, training.batch_size, training.learning_rate) == (40, 32, 0.001)
    assert (training.early_stopping_patience, training.seed) == (6, 0)
    assert spec.alias is None


def test_answers_are_explained_unless_nobody_wants_it_or_they_are_recommendations() -> None:
    message = tabular()
    asked = parse_spec(message).to_proto().explanation
    assert asked.method == pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS
    message.explanation.method = pb.EXPLANATION_METHOD_NONE
    assert not parse_spec(message).explanation.gradients
    items = table("recommendation", user="who", item="what")
    assert parse_spec(items).to_proto().explanation.method == pb.EXPLANATION_METHOD_NONE
    items.explanation.method = pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(items)
    assert refused.value.metadata["field"] == "training_job.spec.explanation.method"


def test_images_are_convolutional_by_default() -> None:
    spec = parse_spec(image())
    assert spec.family == Convolutional(filters=(32, 64), dense_units=64, dropout=0.25)
    assert spec.task.name == "image_classification"


def test_an_explicit_zero_is_not_the_default() -> None:
    spec = tabular()
    spec.dense.dropout = 0
    assert parse_spec(spec).family == Dense(hidden_units=(256, 128), dropout=0)


@pytest.mark.parametrize(
    "message", [tabular(features=["a", "b"], missing=2, duplicates=3), image()]
)
def test_survives_the_way_through_json(message: pb.TrainingSpec) -> None:
    message.publication.alias = "production"
    message.training.learning_rate = 0.1 + 0.2
    spec = parse_spec(message)
    text = json_format.MessageToJson(spec.to_proto())
    assert parse_spec(json_format.Parse(text, pb.TrainingSpec())) == spec


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("dataset", pb.TrainingSpec(dataset="iris")),
        ("tabular_classification.missing", {"missing": 9}),
        ("tabular_classification.duplicates", {"duplicates": 9}),
        ("tabular_classification.target", {"target": ""}),
        ("tabular_classification.features[0]", {"features": [""]}),
        ("tabular_classification.features[0]", {"features": ["kind"]}),
        ("tabular_classification.features[1]", {"features": ["a", "a"]}),
        ("dense.hidden_units[1]", pb.DenseFamily(hidden_units=[1, 4097])),
        ("dense.hidden_units[0]", pb.DenseFamily(hidden_units=[0])),
        ("dense.hidden_units", pb.DenseFamily(hidden_units=[1] * 17)),
        ("dense.dropout", pb.DenseFamily(dropout=0.91)),
        ("dense.dropout", pb.DenseFamily(dropout=math.nan)),
        ("convolutional", pb.ConvolutionalFamily()),
        ("split.validation_fraction", pb.Split(validation_fraction=0)),
        ("split.validation_fraction", pb.Split(validation_fraction=math.nan)),
        ("split.test_fraction", pb.Split(test_fraction=0.51)),
        ("split.test_fraction", pb.Split(validation_fraction=0.5, test_fraction=0.5)),
        ("explanation.steps", pb.TrainingSpec(explanation=pb.Explanation(steps=1025))),
        ("training.max_epochs", pb.Training(max_epochs=-1)),
        ("training.max_epochs", pb.Training(max_epochs=10_001)),
        ("training.batch_size", pb.Training(batch_size=65_537)),
        ("training.learning_rate", pb.Training(learning_rate=0)),
        ("training.learning_rate", pb.Training(learning_rate=math.nan)),
        ("training.learning_rate", pb.Training(learning_rate=math.inf)),
        ("training.learning_rate", pb.Training(learning_rate=1.1)),
        ("training.early_stopping_patience", pb.Training(early_stopping_patience=-1)),
        ("publication.model", pb.Publication(model="Iris")),
        ("publication.alias", pb.Publication(model=MODEL, alias="Über")),
    ],
)
def test_names_the_field_that_is_wrong(field: str, change: object) -> None:
    spec = tabular()
    match change:
        case dict():
            spec = tabular(**change)
        case pb.TrainingSpec():
            spec.MergeFrom(change)
        case pb.DenseFamily():
            spec.dense.CopyFrom(change)
        case pb.ConvolutionalFamily():
            spec.convolutional.CopyFrom(change)
        case pb.Split():
            spec.split.CopyFrom(change)
        case pb.Training():
            spec.training.CopyFrom(change)
        case pb.Publication():
            spec.publication.CopyFrom(change)
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(spec)
    assert refused.value.metadata["field"] == f"training_job.spec.{field}"


@pytest.mark.parametrize(
    ("field", "family"),
    [
        ("filters[0]", pb.ConvolutionalFamily(filters=[1025])),
        ("filters", pb.ConvolutionalFamily(filters=[1] * 9)),
        ("dense_units", pb.ConvolutionalFamily(dense_units=4097)),
        ("dropout", pb.ConvolutionalFamily(dropout=-0.1)),
    ],
)
def test_names_the_field_of_a_convolutional_family(
    field: str, family: pb.ConvolutionalFamily
) -> None:
    spec = image()
    spec.convolutional.CopyFrom(family)
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(spec)
    assert refused.value.metadata["field"] == f"training_job.spec.convolutional.{field}"


def test_refuses_a_spec_without_a_task() -> None:
    spec = tabular()
    spec.ClearField("tabular_classification")
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(spec)
    assert refused.value.metadata["field"] == "training_job.spec.task"


def test_refuses_one_array_as_images_and_labels() -> None:
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(image(images="x", labels="x"))
    assert refused.value.metadata["field"] == "training_job.spec.image_classification.labels"

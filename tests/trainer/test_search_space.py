"""Search spaces that cannot work are refused by name when a study is created."""

from collections.abc import Sequence
from typing import Any

import pytest

from servery.trainer.v1 import training_pb2
from servery.trainer.v1 import tuning_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.search_space import Choice, Real, Whole, assigned, parse_space
from tests.trainer.specs import tabular, text

FLOATS = {"low": 0.1, "high": 0.2}
INTEGERS = {"low": 1, "high": 2}


def parse(*parameters: dict[str, Any], spec: training_pb2.TrainingSpec | None = None) -> Any:
    asked = [pb.Parameter(**parameter) for parameter in parameters]
    return parse_space(asked, spec or tabular(), "study.parameters")


def choices(path: str, *values: str) -> dict[str, Any]:
    return {"path": path, "choices": {"values": values}}


def test_every_kind_of_hyperparameter_can_be_searched() -> None:
    parsed = parse(
        {"path": "training.learning_rate", "floats": {"low": 1e-5, "high": 0.1, "log": True}},
        {"path": "training.batch_size", "integers": {"low": 8, "high": 512, "log": True}},
        choices("training.optimizer", "OPTIMIZER_ADAM", '"OPTIMIZER_SGD"'),
        choices("dense.hidden_units", "[64]", "[64, 32]", "[]"),
        {"path": "dense.dropout", "floats": FLOATS},
    )
    assert [parameter.domain for parameter in parsed] == [
        Real(1e-5, 0.1, log=True),
        Whole(8, 512, log=True),
        Choice(('"OPTIMIZER_ADAM"', '"OPTIMIZER_SGD"')),
        Choice(("[64]", "[64, 32]", "[]")),
        Real(0.1, 0.2, log=False),
    ]


def test_numbers_of_the_task_can_be_searched() -> None:
    vocabulary = {"path": "text_classification.vocabulary_size", "integers": INTEGERS}
    bidirectional = choices("recurrent.bidirectional", "true", "false")
    assert len(parse(vocabulary, bidirectional, spec=text())) == 2


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        pytest.param([], "", id="none"),
        pytest.param(
            [{"path": "training.l2", "floats": FLOATS}] * 2, "[1].path", id="the same twice"
        ),
        pytest.param([{"path": "training.rate", "floats": FLOATS}], "[0].path", id="unknown"),
        pytest.param([{"path": "train.l2", "floats": FLOATS}], "[0].path", id="unknown parent"),
        pytest.param([{"path": "", "floats": FLOATS}], "[0].path", id="empty"),
        pytest.param([{"path": "training", "floats": FLOATS}], "[0].path", id="a message"),
        pytest.param([{"path": "training.l2.x", "floats": FLOATS}], "[0].path", id="too deep"),
        pytest.param([{"path": "training.seed", "integers": INTEGERS}], "[0].path", id="seed"),
        pytest.param([choices("dataset", "a", "b")], "[0].path", id="dataset"),
        pytest.param([choices("base_version", "a", "b")], "[0].path", id="base version"),
        pytest.param([choices("custom.module", "a", "b")], "[0].path", id="code"),
        pytest.param([{"path": "split.test_fraction", "floats": FLOATS}], "[0].path", id="split"),
        pytest.param([choices("tabular_classification.target", "a", "b")], "[0].path", id="target"),
        pytest.param(
            [{"path": "text_classification.max_tokens", "integers": INTEGERS}],
            "[0].path",
            id="another task",
        ),
        pytest.param(
            [{"path": "training.l2", "integers": INTEGERS}], "[0].integers", id="not whole"
        ),
        pytest.param([{"path": "training.max_epochs", "floats": FLOATS}], "[0].floats", id="whole"),
        pytest.param(
            [{"path": "dense.hidden_units", "integers": INTEGERS}], "[0].integers", id="list"
        ),
        pytest.param([{"path": "training.l2"}], "[0]", id="no values"),
        pytest.param(
            [{"path": "training.l2", "floats": {"low": 2, "high": 1}}],
            "[0].floats.high",
            id="wrong way round",
        ),
        pytest.param(
            [{"path": "training.l2", "floats": {"low": float("nan"), "high": 1}}],
            "[0].floats.high",
            id="NaN",
        ),
        pytest.param(
            [{"path": "training.l2", "floats": {"high": 1, "log": True}}],
            "[0].floats.low",
            id="log of 0",
        ),
        pytest.param(
            [{"path": "training.learning_rate", "floats": {"low": 0.1, "high": 2}}],
            "[0]",
            id="out of range",
        ),
        pytest.param(
            [{"path": "training.momentum", "floats": FLOATS}], "[0]", id="of another optimizer"
        ),
        pytest.param([choices("training.optimizer")], "[0].choices.values", id="no choice"),
        pytest.param(
            [choices("training.optimizer", "OPTIMIZER_SGD", '"OPTIMIZER_SGD"')],
            "[0].choices.values[1]",
            id="one choice twice",
        ),
        pytest.param([choices("training.optimizer", "RMSPROP")], "[0]", id="no such name"),
        pytest.param([choices("dense.hidden_units", '["x"]')], "[0]", id="wrong type"),
        pytest.param([choices("dense.hidden_units", "[0]")], "[0]", id="choice out of range"),
    ],
)
def test_a_space_that_cannot_work_is_refused(
    parameters: Sequence[dict[str, Any]], field: str
) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        parse(*parameters)
    assert refused.value.metadata["field"] == f"study.parameters{field}"


def test_a_family_the_spec_does_not_have_is_refused() -> None:
    spec = text({"dense": {}})
    with pytest.raises(FieldInvalidError) as refused:
        parse({"path": "recurrent.units", "integers": INTEGERS}, spec=spec)
    assert refused.value.metadata["field"] == "study.parameters[0].path"


def test_assigning_changes_what_is_named_and_nothing_else() -> None:
    spec = tabular()
    spec.training.batch_size = 7
    values = {"training.learning_rate": 0.5, "dense.hidden_units": [3], "dense.dropout": 0.0}
    got = assigned(spec, values)
    assert (got.training.learning_rate, got.training.batch_size) == (0.5, 7)
    assert (list(got.dense.hidden_units), got.dense.dropout) == ([3], 0.0)
    assert assigned(got, {"dense.hidden_units": [4, 5]}).dense.hidden_units == [4, 5]
    assert not spec.HasField("dense")
    assert assigned(text(), {"recurrent.bidirectional": False}).HasField("recurrent")

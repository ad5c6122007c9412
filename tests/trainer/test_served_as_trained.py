"""Whatever is learned, from whatever rows: the graph answers what framework and NumPy answer."""

from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import export, frameworks, parity, problems
from servery_trainer.fitting import fit_columns, fit_text, vocabulary_size
from servery_trainer.heads import Calibrated
from servery_trainer.imputation import Imputation
from servery_trainer.interactions import Interactions
from servery_trainer.label_sets import LabelSets
from servery_trainer.normality import Normality
from servery_trainer.numbering import Numbering
from servery_trainer.preprocessing import ArrayPreprocessing, Preprocessing
from servery_trainer.quantities import Quantities
from servery_trainer.recommendation_task import RecommendationTask
from servery_trainer.sizes import parameter_count
from servery_trainer.spec import parse_spec
from servery_trainer.targets import Classes, Place, Target
from servery_trainer.tasks import Fill, TextTask
from servery_trainer.windows import Horizons
from tests.trainer.specs import table as spec_of
from tests.trainer.specs import tabular, text
from tests.trainer.test_text_families import ODD, SENTENCES
from tests.trainer.test_text_families import rows as texts

pytestmark = pytest.mark.slow  # and the tests import TensorFlow, not the module: seconds saved

ROWS = 60
TYPES = {
    "dose": dataset_pb2.COLUMN_TYPE_NUMERIC,
    "ward": dataset_pb2.COLUMN_TYPE_TEXT,
    "smoker": dataset_pb2.COLUMN_TYPE_BOOLEAN,
    "born": dataset_pb2.COLUMN_TYPE_DATE,
}
ODD_ROWS = [
    (np.nan, "", "", ""),
    (1e6, "never seen", "true", "9999-12-31T23:59:59"),
    (-1e6, "x" * 50_000, "false", "0001-01-01"),
    (1e-45, "Ωμέγα 🍰", "true", "2024-02-29"),
    (0.0, "north", "", "1969-12-31"),
]


def target(goal: str) -> Target:
    rng = np.random.default_rng(5)
    match goal:
        case "classes":
            return Classes(values=rng.integers(0, 3, ROWS), labels=("no", "täglich", ""))
        case "what comes next":
            ahead = rng.normal(50, 20, (ROWS, 3)).astype(np.float32)
            past = rng.normal(50, 20, (ROWS, 12)).astype(np.float32)
            naive_errors_B = np.ones(ROWS, np.float32)
            return Horizons(values=ahead, past=past, naive_errors_B=naive_errors_B, column="y")
        case "a number":
            values = rng.normal(-3000, 40, (ROWS, 1)).astype(np.float32)
            return Quantities(values=values, place=Place(column="y"))
        case "what is normal":
            nothing = np.zeros(ROWS, np.int64)
            return Normality(values=nothing, column="", normal="", false_alarm_rate=0.2)
        case "what to recommend":
            task = parse_spec(spec_of("recommendation", user="ward", item="y", k=4)).task
            assert isinstance(task, RecommendationTask)
            pairs = np.stack([rng.integers(1, 4, ROWS), rng.integers(0, 6, ROWS)], axis=1)
            items = ("a", "", "täglich", "d", "e", "x" * 9000)
            return Interactions(values=pairs, items=items, times_B=None, task=task)
        case _:
            truths = (rng.random((ROWS, 3)) < 0.4).astype(np.uint8)
            return LabelSets(values=truths, labels=("a", "b", "c"), places=(Place(column="y"),))


GOALS = ["classes", "a number", "labels"]


def table() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    columns: dict[str, Any] = {
        "dose": rng.normal(5, 3, (ROWS, 1)).astype(np.float32),
        "ward": rng.choice(["north", "south", "Ωμέγα 🍰"], (ROWS, 1)).astype(np.object_),
        "smoker": rng.choice(["true", "false"], (ROWS, 1)).astype(np.object_),
        "born": rng.choice(["2024-02-29", "1970-01-01"], (ROWS, 1)).astype(np.object_),
    }
    columns["dose"][::7] = np.nan
    return columns


def check(
    preprocessing: Preprocessing,
    goal: str,
    family: Any,
    inputs: dict[str, Any],
    framework: pb.Framework.ValueType = pb.FRAMEWORK_KERAS,
) -> None:
    """Convert an untrained network and compare on these rows."""
    library = frameworks.load(framework)
    learned = target(goal)
    head, objective = problems.pose(learned, np.arange(ROWS), parse_spec(tabular()).training)
    arguments = (family, preprocessing.feature_shape, learned.width, vocabulary_size(preprocessing))
    network = library.build(*arguments, seed=1)
    assert network.count_params() == parameter_count(*arguments)
    answering = library.answering([network], objective)
    answers = export.predict(answering, preprocessing, inputs)
    if isinstance(head, Calibrated):
        head = head.calibrated(answers)
    graph = parity.Graph(export.to_onnx(answering, preprocessing, head), threads=1)
    assert np.isfinite(answers).all()
    expected = head.decode(answers)
    assert [output.name for output in head.outputs] == list(expected)
    found = parity.check_parity(graph, inputs, expected, tolerance=1e-5)
    assert found.label_agreement == 1
    for output in head.outputs:
        assert graph.run(inputs)[output.name].shape[1:] == output.shape


@pytest.mark.parametrize("goal", [*GOALS, "what is normal"])
def test_tables_with_rows_of_every_kind(goal: str) -> None:
    train = table()
    policy = Imputation.of(pb.MISSING_POLICY_IMPUTE_MEDIAN, Fill())
    preprocessing = fit_columns(TYPES, train, policy)
    odd = {
        name: np.array([[row[place]] for row in ODD_ROWS], values.dtype)
        for place, (name, values) in enumerate(train.items())
    }
    inputs = {name: np.concatenate([odd[name], values]) for name, values in train.items()}
    spec = spec_of("anomaly_detection") if goal == "what is normal" else tabular()
    check(preprocessing, goal, parse_spec(spec).family, inputs)


def test_users_of_every_kind() -> None:
    train = table()["ward"]
    preprocessing = Numbering.fit("ward", train[:, 0])
    odd = np.array([[row[1]] for row in ODD_ROWS], np.object_)
    spec = parse_spec(spec_of("recommendation", user="ward", item="y"))
    for inputs in (odd[:3], np.concatenate([odd, train])):
        check(preprocessing, "what to recommend", spec.family, {"ward": inputs})


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("family", ["dense", "embedding", "recurrent", "transformer"])
def test_texts_of_every_kind(goal: str, family: str) -> None:
    spec = parse_spec(text({family: {}}, max_tokens=20))
    assert isinstance(spec.task, TextTask)
    preprocessing = fit_text(spec.task, spec.family, texts(*SENTENCES))
    check(preprocessing, goal, spec.family, texts(*ODD, *SENTENCES))


@pytest.mark.parametrize("goal", ["classes", "what comes next"])
@pytest.mark.parametrize("family", ["dense", "convolutional", "recurrent", "transformer"])
def test_sequences_of_every_kind(goal: str, family: str) -> None:
    spec = spec_of("sequence_classification")
    getattr(spec, family).SetInParent()
    rows = np.random.default_rng(7).normal([50, -0.1], [20, 0.01], (ROWS, 12, 2))
    rows = rows.astype(np.float32)
    preprocessing = ArrayPreprocessing.fit("history", rows, by_channel=True)
    odd = np.stack([np.zeros((12, 2)), np.full((12, 2), 1e4), np.full((12, 2), -1e4)])
    inputs = {"history": np.concatenate([odd.astype(np.float32), rows])}
    check(preprocessing, goal, parse_spec(spec).family, inputs)

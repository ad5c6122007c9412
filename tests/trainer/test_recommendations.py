"""Recommendations: who sees what is right, and people's next films are found."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.examples import Examples, load_examples
from servery_trainer.interactions import Interactions
from servery_trainer.recommendations import Recommendations
from servery_trainer.spec import parse_spec
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import table

ROWS = """user,film,stars,day
ann,Alien,5,2020-01-03
ann,Brazil,4,2020-01-01
ann,Contact,1,2020-01-05
ann,Dune,5,2020-01-02
bob,Alien,3,2020-02-01
bob,Dune,4,2020-01-01
bob,Brazil,5,2020-03-01
cy,Alien,5,2020-03-01
cy,Dune,4,2020-01-01
"""
TASK: dict[str, Any] = {"user": "user", "item": "film", "k": 2}
RATED: dict[str, Any] = TASK | {"rating": "stars", "min_rating": 3}


def load(file: Path, content: str = ROWS, **task: Any) -> Examples:
    file.write_text(content)
    return load_examples(parse_spec(table("recommendation", **(TASK | task))), file)


def taken(examples: Examples, rows: Any) -> list[tuple[str, str]]:
    target = examples.target
    assert isinstance(target, Interactions)
    films = [target.items[code] for code in target.values[rows, 1]]
    return list(zip(examples.inputs["user"][rows, 0].tolist(), films, strict=True))


def test_the_last_two_interactions_of_a_user_are_held_out(tmp_path: Path) -> None:
    examples = load(tmp_path / "films.csv", **RATED, time="day")
    assert list(examples.inputs) == ["user"]
    assert taken(examples, examples.split.test) == [("ann", "Alien"), ("bob", "Brazil")]
    assert taken(examples, examples.split.validation) == [("ann", "Dune"), ("bob", "Alien")]
    assert set(taken(examples, examples.split.train)) == {
        ("ann", "Brazil"),
        ("bob", "Dune"),
        ("cy", "Alien"),
        ("cy", "Dune"),
    }
    assert (examples.total, examples.dropped_missing, examples.dropped_duplicates) == (9, 0, 0)


def test_without_times_the_seed_decides(tmp_path: Path) -> None:
    parts = [load(tmp_path / "films.csv").split for _ in range(2)]
    np.testing.assert_array_equal(parts[0].test, parts[1].test)
    assert [len(part) for part in (parts[0].train, parts[0].validation, parts[0].test)] == [5, 2, 2]


def head(*, repeat_items: bool = False, k: int = 3) -> Recommendations:
    """User 1 took a and b, user 2 took b; nobody took d."""
    train = np.array([[1, 0], [1, 1], [2, 1]])
    return Recommendations.of(train, ("a", "b", "c", "d"), k, repeat_items=repeat_items)


def answers(*rows: list[float]) -> Any:
    """A number of a user and scores, c taken to be known."""
    return np.array(rows, np.float32)


def test_answers_with_what_a_user_has_not_taken_the_best_first() -> None:
    said = head().decode(answers([0, 1, 3, 2, 0], [1, 1, 3, 2, 0], [2, 1, 3, 1, 0]))
    assert said["items"].tolist() == [["b", "c", "a"], ["c", "d", ""], ["a", "c", "d"]]
    assert said["scores"].tolist() == [[3, 2, 1], [2, 0, 0], [1, 1, 0]]
    again = head(repeat_items=True).decode(answers([1, 1, 3, 2, 0]))
    assert again["items"].tolist() == [["b", "c", "a"]]


def test_never_recommends_what_nobody_took() -> None:
    fallback = answers([0, *head().log_shares])
    assert head().decode(fallback)["items"].tolist() == [["b", "a", ""]]


def test_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(7)
    scores = rng.normal(size=(50, 20)).astype(np.float32)
    truth = np.stack([np.ones(50, np.int64), rng.integers(0, 20, 50)], axis=1)
    items = tuple(f"i{n:02}" for n in range(20))
    everything = np.stack([np.ones(20, np.int64), np.arange(20)], axis=1)
    judge = Recommendations.of(everything, items, 5, repeat_items=True)
    said = judge.decode(np.concatenate([np.ones((50, 1), np.float32), scores], axis=1))
    found = judge.evaluate(said, truth).result
    relevant = np.eye(20)[truth[:, 1]]
    assert found.metrics["ndcg"] == pytest.approx(metrics.ndcg_score(relevant, scores, k=5))
    hits = metrics.top_k_accuracy_score(truth[:, 1], scores, k=5, labels=np.arange(20))
    assert found.metrics["recall"] == pytest.approx(hits)
    assert judge.row_scores(said, truth).mean() == pytest.approx(found.metrics["ndcg"])
    assert found.metrics["coverage"] == 1
    for name in ("recall", "ndcg", "popularity_recall", "popularity_ndcg"):
        assert found.intervals[name].lower <= found.metrics[name] <= found.intervals[name].upper


@pytest.mark.parametrize(
    ("content", "task", "problem", "column"),
    [
        (ROWS, RATED | {"min_rating": 6}, Problem.TOO_FEW_ROWS, "user"),
        ("user,film\n" + "ann,A\nann,B\nann,C\n", {}, Problem.TOO_FEW_ROWS, "user"),
        ("user,film\n" + "ann,A\nbob,A\n", {}, Problem.TOO_FEW_ROWS, "film"),
        ("user,film\n" + "ann,A\nbob,A\nbob,B\n", {}, Problem.TOO_FEW_ROWS, "user"),
        (ROWS + "ann,,4,2020-01-01\n", {}, Problem.MISSING_VALUE, "film"),
        (ROWS + "ann,X,,2020-01-01\n", RATED, Problem.MISSING_VALUE, "stars"),
        (ROWS + "ann,X,good,2020-01-01\n", RATED, Problem.NOT_A_NUMBER, "stars"),
        (ROWS + "ann,X,4,soon\n", {"time": "day"}, Problem.WRONG_TYPE, "day"),
        (ROWS + "ann,Dune,4,2020-01-01\n", {}, Problem.DUPLICATE_ROW, None),
        (ROWS, {"item": "movie"}, Problem.MISSING_COLUMN, "movie"),
    ],
)
def test_refuses_what_teaches_nothing(
    tmp_path: Path, content: str, task: dict[str, Any], problem: Problem, column: str | None
) -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        load(tmp_path / "films.csv", content, **task)
    assert refused.value.metadata["problem"] == problem
    assert refused.value.metadata.get("column") == column


def test_refuses_to_answer_with_more_items_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        load(tmp_path / "films.csv", k=5)
    assert refused.value.metadata["field"] == "training_job.spec.recommendation.k"


@pytest.mark.parametrize(
    ("field", "task", "rest"),
    [
        ("recommendation.user", {"user": ""}, pb.TrainingSpec()),
        ("recommendation.item", {"item": "user"}, pb.TrainingSpec()),
        ("recommendation.time", {"time": "film"}, pb.TrainingSpec()),
        ("recommendation.min_rating", {"rating": "stars"}, pb.TrainingSpec()),
        ("recommendation.min_rating", {"min_rating": 4}, pb.TrainingSpec()),
        ("recommendation.k", {"k": 1001}, pb.TrainingSpec()),
        ("recommendation.duplicates", {"duplicates": 3}, pb.TrainingSpec()),
        ("two_tower.dimension", {}, pb.TrainingSpec(two_tower=pb.TwoTowerFamily(dimension=1025))),
        ("dense", {}, pb.TrainingSpec(dense=pb.DenseFamily())),
        ("split", {}, pb.TrainingSpec(split=pb.Split(test_fraction=0.2))),
        (
            "training.class_weights",
            {},
            pb.TrainingSpec(training=pb.Training(class_weights=pb.CLASS_WEIGHTS_BALANCED)),
        ),
    ],
)
def test_names_the_field_that_is_wrong(
    field: str, task: dict[str, Any], rest: pb.TrainingSpec
) -> None:
    spec = table("recommendation", **(TASK | task))
    spec.MergeFrom(rest)
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(spec)
    assert refused.value.metadata["field"] == f"training_job.spec.{field}"


def test_batches_are_larger_by_default() -> None:
    spec = table("recommendation", **TASK)
    assert parse_spec(spec).training.batch_size == 256
    spec.training.batch_size = 7
    assert parse_spec(spec).training.batch_size == 7


def test_survives_its_own_rendering() -> None:
    spec = parse_spec(table("recommendation", **RATED, time="day", repeat_items=True))
    assert parse_spec(spec.to_proto()) == spec


INK = 8
"""Pixels of a drawn digit that are at least so dark, of 16, are those that the drawer chose."""
REFERENCE_NDCG = 0.572
"""Of PureSVD (Cremonesi et al., 2010) of rank 8; what is taken most often has 0.356."""


def drawings() -> tuple[Any, Any]:
    """The drawing and the pixel of each interaction."""
    users, pixels = np.nonzero(load_digits().data[:600] >= INK)
    return users, pixels


@pytest.fixture(scope="module")
def job(jobs: SuccessiveJobs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Which pixel of a drawn digit is dark, too: real choices, of 64 items by 600 drawings."""
    directory = tmp_path_factory.mktemp("drawings")
    rows = [f"{user},{pixel}" for user, pixel in zip(*drawings(), strict=True)]
    (directory / "drawings.csv").write_text("\n".join(["drawing,pixel", *rows]))
    spec = table("recommendation", user="drawing", item="pixel", k=5)
    return jobs.run(spec, directory / "drawings.csv", directory / "out")


@pytest.mark.slow
class TestDrawings:
    def test_are_completed_nearly_as_well_as_by_a_singular_value_decomposition(
        self, job: Run
    ) -> None:
        assert job.exit == 0, job.lines[-1]
        examples = load_examples(
            parse_spec(table("recommendation", user="drawing", item="pixel", k=5)),
            job.out.parent / "drawings.csv",
        )
        target = examples.target
        assert isinstance(target, Interactions)
        train, test = target.values[examples.split.train], target.values[examples.split.test]
        taken = np.zeros((target.user_count, len(target.items)))
        taken[train[:, 0] - 1, train[:, 1]] = 1
        decomposition = TruncatedSVD(8, random_state=0)
        scores = decomposition.inverse_transform(decomposition.fit_transform(taken))
        numbers = np.arange(1, target.user_count + 1)[:, None]
        head = Recommendations.of(train, target.items, 5, repeat_items=False)
        said = head.decode(np.concatenate([numbers, scores], axis=1).astype(np.float32))
        by_user = {name: values[test[:, 0] - 1] for name, values in said.items()}
        reference = head.metrics(by_user, test)
        assert reference["ndcg"] == pytest.approx(REFERENCE_NDCG, abs=0.02)
        assert job.result.metrics["ndcg"] >= 0.85 * reference["ndcg"]
        assert job.result.metrics["popularity_ndcg"] == pytest.approx(reference["popularity_ndcg"])
        lower = job.result.intervals["ndcg"].lower
        assert lower > job.result.intervals["popularity_ndcg"].upper

    def test_says_what_it_learned(self, job: Run) -> None:
        assert job.result.score == "ndcg"
        assert job.result.parity.max_relative_error < 1e-5
        assert job.result.parity.label_agreement == 1
        assert job.document("statistics.json")["interactions"]["items"] == len(set(drawings()[1]))
        assert (job.out / "recall.png").exists()

    def test_the_graph_knows_who_took_what(self, job: Run) -> None:
        session = ort.InferenceSession(job.out / "model.onnx")
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            ("drawing", "tensor(string)", ["batch", 1])
        ]
        assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
            ("items", "tensor(string)", ["batch", 5]),
            ("scores", "tensor(float)", ["batch", 5]),
        ]
        users = np.array([["0"], ["nobody"], ["never drawn"]], np.object_)
        items, scores = session.run(["items", "scores"], {"drawing": users})
        assert items[1].tolist() == items[2].tolist() != items[0].tolist()
        assert (np.diff(scores, axis=1) <= 0).all()

"""Time series: windows hold what they should; real ones are forecast better than by a classic."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.examples import load_examples
from servery_trainer.forecast import Forecast
from servery_trainer.spec import parse_spec
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import table

SUNSPOTS = Path(__file__).parent / "data" / "sunspots.csv"
WINDOW, HORIZON = 22, 3


def load(tmp_path: Path, lines: str, **task: Any) -> Any:
    path = tmp_path / "series.csv"
    path.write_text(lines)
    given = {"time": "t", "target": "y", "window": 2, "horizon": 1} | task
    return load_examples(parse_spec(table("forecasting", **given)), path)


def refusal(tmp_path: Path, lines: str, **task: Any) -> DatasetInvalidError:
    with pytest.raises(DatasetInvalidError) as caught:
        load(tmp_path, lines, **task)
    return caught.value


def test_windows_follow_the_times_and_not_the_file(tmp_path: Path) -> None:
    days = [3, 1, 2, *range(20, 3, -1)]
    rows = "\n".join(f"2024-01-{day:02},{day * 10},{day}" for day in days)
    examples = load(tmp_path, f"t,y,x\n{rows}\n", covariates=["x"], horizon=2)
    history, future = examples.inputs["history"], examples.target.values
    assert history[0].tolist() == [[10, 1], [20, 2]]
    assert future[:3].tolist() == [[30, 40], [40, 50], [50, 60]]
    assert examples.row_numbers_B[:3].tolist() == [1, 20, 19]


def test_no_window_reaches_into_another_series(tmp_path: Path) -> None:
    rows = [f"{t},{series},{base + t}" for t in range(6) for series, base in (("a", 0), ("b", 50))]
    examples = load(tmp_path, "\n".join(["t,s,y", *rows]), series="s")
    spread = np.ptp(np.c_[examples.inputs["history"][..., 0], examples.target.values], axis=1)
    assert len(spread) == 8
    assert spread.max() == 2


def test_nothing_is_trained_on_that_lies_after_what_tests(tmp_path: Path) -> None:
    rows = "\n".join(f"{t},{t % 7}" for t in range(100))
    examples = load(tmp_path, f"t,y\n{rows}\n", horizon=4)
    first = examples.row_numbers_B  # of the horizon, and the rows are in the order of time
    split = examples.split
    assert first[split.train].max() + 3 < first[split.validation].min()
    assert first[split.validation].max() + 3 < first[split.test].min()
    assert len(split.train) + len(split.validation) + len(split.test) == len(first) - 2 * 3


@pytest.mark.parametrize(
    ("lines", "task", "problem", "place"),
    [
        ("t,y\n1,1\n1,2\n2,3\n", {}, Problem.DUPLICATE_ROW, ("row", "2")),
        ("t,y\n1,1\n2,\n3,3\n", {}, Problem.MISSING_VALUE, ("row", "2")),
        ("t,y\n1,1\n2,many\n3,3\n", {}, Problem.NOT_A_NUMBER, ("row", "2")),
        ("t,y\n1,1\n,2\n3,3\n", {}, Problem.MISSING_VALUE, ("column", "t")),
        ("t,y\n1,1\nmay,2\n3,3\n", {}, Problem.WRONG_TYPE, ("row", "2")),
        ("t,y\n1,1\n2,2\n", {}, Problem.TOO_FEW_ROWS, None),
        ("t,y\n1,1\n2,2\n3,3\n4,4\n", {}, Problem.TOO_FEW_ROWS, None),
        ("t,y\n1,5\n2,5\n3,5\n4,5\n5,5\n", {}, Problem.CONSTANT_TARGET, ("column", "y")),
        ("t,y\n1,1\n", {"target": "z"}, Problem.MISSING_COLUMN, ("column", "z")),
        ("t,y\n1,1\n", {"covariates": ["z"]}, Problem.MISSING_COLUMN, ("column", "z")),
        ("t,y,x\n1,1,0\n2,2,\n", {"covariates": ["x"]}, Problem.MISSING_VALUE, ("column", "x")),
    ],
)
def test_refuses(
    tmp_path: Path,
    lines: str,
    task: dict[str, Any],
    problem: Problem,
    place: tuple[str, str] | None,
) -> None:
    error = refusal(tmp_path, lines, **task)
    assert error.problem is problem
    if place:
        assert error.metadata[place[0]] == place[1]


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"time": ""}, "time"),
        ({"target": "t"}, "target"),
        ({"series": "y"}, "series"),
        ({"covariates": ["y"]}, "covariates[0]"),
        ({"window": 5000}, "window"),
        ({"horizon": -1}, "horizon"),
        ({"window": 10, "season": 11}, "season"),
    ],
)
def test_refuses_what_is_no_task(task: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(table("forecasting", **({"time": "t", "target": "y"} | task)))
    assert caught.value.metadata["field"] == f"training_job.spec.forecasting.{field}"


def test_windows_that_take_too_much_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servery_trainer.windows.MAX_BYTES", 100)
    rows = "\n".join(f"{t},{t}" for t in range(50))
    with pytest.raises(FieldInvalidError) as caught:
        load(tmp_path, f"t,y\n{rows}\n")
    assert caught.value.metadata["field"] == "training_job.spec.forecasting.window"


def test_figures_are_in_units_of_the_naive_forecast() -> None:
    head = Forecast("y", horizon=2, scale=4.0)
    truth = np.array([[0, 0], [10, 10]], np.float32)
    metrics = head.metrics({"forecast": truth + np.array([1, 3], np.float32)}, truth)
    assert metrics == pytest.approx({"mae": 2, "mse": 5, "rmse": 5**0.5, "mase": 0.5, "skill": 0.5})


def spots() -> pb.TrainingSpec:
    given = {"window": WINDOW, "horizon": HORIZON, "season": 11}
    return table("forecasting", time="year", target="spots", **given)


@pytest.fixture(scope="module")
def job(jobs: SuccessiveJobs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Sunspots of the next three years from those of the 22 years before."""
    return jobs.run(spots(), SUNSPOTS, tmp_path_factory.mktemp("sunspots") / "out")


@pytest.mark.slow
class TestSunspots:
    def test_are_forecast_better_than_by_autoregression(self, job: Run) -> None:
        """An autoregressive model of order 9 is the classic for this series (Subba Rao, 1984)."""
        assert job.exit == 0, job.lines[-1]
        examples = load_examples(parse_spec(spots()), SUNSPOTS)
        history, truth = examples.inputs["history"][:, -9:, 0], examples.target.values
        inputs = np.c_[history, np.ones(len(history))]
        learned = np.linalg.lstsq(inputs[examples.split.train], truth[examples.split.train])[0]
        errors = np.abs(inputs[examples.split.test] @ learned - truth[examples.split.test])
        assert job.result.metrics["mae"] < errors.mean()
        assert job.result.metrics["skill"] > 0

    def test_says_what_it_learned(self, job: Run) -> None:
        assert job.result.parity.max_relative_error < 1e-4
        session = ort.InferenceSession(job.out / "model.onnx")
        (history,) = session.get_inputs()
        assert (history.name, history.shape[1:]) == ("history", [WINDOW, 1])
        (answer,) = session.run(None, {"history": np.zeros((2, WINDOW, 1), np.float32)})
        assert answer.shape == (2, HORIZON)
        assert (job.out / "forecast.png").stat().st_size
        assert job.result.rows.test > 30

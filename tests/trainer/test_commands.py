"""`servery train`, `servery jobs` and `servery tune`, as a user types them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from google.protobuf import json_format

from servery.cli.jobs import priority_of
from servery.cli.schema import fill
from servery.cli.tune import parse_parameter
from servery.trainer.v1 import training_pb2
from servery.trainer.v1 import tuning_pb2 as pb
from tests.trainer.service import Client, running_trainer


@dataclass(frozen=True)
class Shell:
    """Runs `servery` against a trainer; no gateway looks at the token."""

    address: str
    client: Client

    async def run(self, *arguments: str) -> tuple[int | None, str, str]:
        """Return exit status, standard output and standard error."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "servery.cli"),
            *("--address", self.address, "--token", "x", "--tenant", "tenants/default"),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    async def json(self, *arguments: str) -> Any:
        """Return what a command that succeeds prints as JSON."""
        status, out, err = await self.run(*arguments, "-o", "json")
        assert status == 0, err
        return json.loads(out)


@pytest.fixture
async def shell(
    tmp_path_factory: pytest.TempPathFactory, command: Sequence[str]
) -> AsyncIterator[Shell]:
    directory = tmp_path_factory.mktemp("t")
    address = f"unix:{directory / 's'}"
    async with running_trainer(directory / "d", command, listen=address) as client:
        yield Shell(address, client)


@pytest.mark.slow
async def test_a_job_can_be_reproduced_and_its_log_read(shell: Shell) -> None:
    job = await shell.client.train("learns-again", {"without_publication": True})
    await shell.client.end(job.name)
    status, out, err = await shell.run("jobs", "reproduce", job.name)
    assert status == 0, err
    assert out.splitlines()[-1].startswith("reproduced")
    status, out, _ = await shell.run("jobs", "logs", job.name, "--follow")
    assert (status, out) == (0, "trains learns-again\n")


@pytest.mark.slow
async def test_other_weights_are_told_from_the_same(shell: Shell) -> None:
    job = await shell.client.train("drifts", {"without_publication": True})
    await shell.client.end(job.name)
    status, out, _ = await shell.run("jobs", "reproduce", job.name)
    assert status == 1
    assert out.splitlines()[-1].startswith("NOT reproduced")


@pytest.mark.slow
async def test_a_cancelled_job_can_be_resumed(shell: Shell) -> None:
    job = await shell.client.train("saves", {"without_publication": True})
    await shell.client.pid(job.name)
    await shell.client.cancel(job.name)
    resumed = await shell.json("jobs", "resume", job.name)
    assert (resumed["resume_from"], resumed["state"]) == (
        job.name,
        "TRAINING_JOB_STATE_SUCCEEDED",
    )


@pytest.mark.slow
async def test_a_study_starts_from_a_job_and_shows_its_trials(shell: Shell) -> None:
    job = await shell.client.train("learns-tuned", {"without_publication": True})
    study = await shell.json(
        *("tune", "start", job.name, "--trials", "2", "--no-publish"),
        *("-p", "training.learning_rate=1e-4..1e-1:log", "-p", "dense.hidden_units=[8]|[8, 4]"),
    )
    values = [trial["value"] for trial in study["trials"]]
    assert values == sorted(values)
    assert [trial["rank"] for trial in study["trials"]] == [1, 2]
    status, out, _ = await shell.run("tune", "show", study["study"]["name"])
    assert status == 0
    assert out.splitlines()[0].split()[:3] == ["RANK", "TRIAL", "STATE"]
    assert out.splitlines()[-1] == "succeeded, 2 trials"
    (listed,) = await shell.json("tune", "list")
    assert listed["name"] == study["study"]["name"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "training.learning_rate=1e-4..1:log",
            {"floats": {"low": 1e-4, "high": 1, "log": True}},
            id="real",
        ),
        pytest.param("training.l2=0..1", {"floats": {"low": 0, "high": 1}}, id="real, not whole"),
        pytest.param("training.batch_size=8..64", {"integers": {"low": 8, "high": 64}}, id="whole"),
        pytest.param(
            "dense.hidden_units=[8]|[8, 4]", {"choices": {"values": ["[8]", "[8, 4]"]}}, id="lists"
        ),
        pytest.param("no.such=1..2", {"floats": {"low": 1, "high": 2}}, id="for the server to say"),
    ],
)
def test_a_parameter_is_typed_in_one_word(text: str, expected: dict[str, Any]) -> None:
    assert parse_parameter(text) == pb.Parameter(path=text.partition("=")[0], **expected)


@pytest.mark.parametrize("text", ["training.l2", "training.l2=", "training.l2=0..x", "a=0..1:exp"])
def test_a_parameter_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_parameter(text)


def test_constants_are_given_by_kind_of_column() -> None:
    given = fill(["numeric=-1", "text=a=b", "boolean=true", "date=2024-02-29"])
    assert given == training_pb2.Fill(number=-1, text="a=b", boolean=True, date="2024-02-29")
    assert fill(None) == training_pb2.Fill()


@pytest.mark.parametrize("text", ["numeric=x", "text", "boolean=1", "age=3"])
def test_a_constant_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        fill([text])


def test_priorities_have_names() -> None:
    named = {text: priority_of(text) for text in ("low", "normal", "high", "0", "100")}
    assert named == {"low": 20, "normal": 50, "high": 80, "0": 0, "100": 100}
    with pytest.raises(typer.BadParameter):
        priority_of("101")


@pytest.mark.slow
async def test_training_asks_for_what_its_options_say(shell: Shell, tmp_path: Path) -> None:
    rows = "\n".join(f"{year},a,{year % 7},{year % 5}" for year in range(1900, 2000))
    table, arrays = tmp_path / "series.csv", tmp_path / "waves.npz"
    table.write_text(f"year,place,spots,rain\n{rows}\n")
    np.savez(arrays, sequences=np.eye(12), labels=["up", "down"] * 6)
    asked = ("--model", "m", "--no-publish", "--detach")
    forecast = await shell.json(
        *("train", str(table), *asked, "--task", "forecast", "--target", "spots"),
        *("--time", "year", "--features", "rain", "--series", "place"),
        *("--window", "22", "--horizon", "3", "--set", "forecasting.season=11"),
        *("--set", "training.optimizer=OPTIMIZER_SGD", "--set", "recurrent.units=8"),
    )
    spec = json_format.ParseDict(forecast["spec"], training_pb2.TrainingSpec())
    assert spec.forecasting == training_pb2.Forecasting(
        time="year",
        target="spots",
        covariates=["rain"],
        series="place",
        window=22,
        horizon=3,
        season=11,
    )
    assert spec.training.optimizer == training_pb2.OPTIMIZER_SGD
    assert spec.recurrent.units == 8
    assert spec.framework == training_pb2.FRAMEWORK_KERAS
    numbers = ("--task", "regression", "--target", "spots", "--fill", "numeric=-1")
    filled = await shell.json(
        *("train", str(table), *asked, *numbers, "--missing", "impute-constant")
    )
    assert filled["spec"]["tabular_regression"]["fill"] == {"number": -1.0}
    status, _, err = await shell.run("train", str(table), *asked, *numbers)
    assert (status, "impute-constant" in err) == (2, True)
    told = await shell.json("train", str(arrays), *asked)
    assert "sequence_classification" in told["spec"]
    status, _, err = await shell.run("train", str(table), *asked, "--set", "training.speed=1")
    assert (status, "Invalid value" in err) == (2, True)

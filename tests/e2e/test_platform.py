"""The main job through the front door: data to a served model, refusals, deaths and restarts."""

import csv
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris

from servery import ApiError, Client
from tests.e2e.running import SERVERY, Platform, free_port, servery_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PROCESSES = ["registry", "trainer", "inference", "gateway", "envoy"]


def write_iris(file: Path) -> dict[str, list[float]]:
    """Write the iris table as CSV; return its first three rows as inputs."""
    data = load_iris()
    names = [name.removesuffix(" (cm)") for name in data.feature_names]
    with file.open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow([*names, "species"])
        for row, target in zip(data.data, data.target, strict=True):
            table.writerow([*row, data.target_names[target]])
    return {name: data.data[:3, i].tolist() for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def iris(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """A model `iris`, trained through the command line; returns rows to ask it about."""
    file = tmp_path_factory.mktemp("iris") / "iris.csv"
    rows = write_iris(file)
    done = platform.cli(
        *("train", file, "--target", "species", "--model", "iris"),
        *("--duplicates", "drop", "--max-epochs", "25", "--learning-rate", "0.02", "-o", "json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = json.loads(done.stdout)
    assert job["state"] == "TRAINING_JOB_STATE_SUCCEEDED"
    assert job["result"]["metrics"]["accuracy"] > 0.8
    assert job["result"]["rows"]["dropped_duplicates"] == "1"
    return rows


def wait_served(servery: Client, model: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            servery.model_metadata(model)
        except ApiError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def test_a_table_becomes_a_served_model(platform: Platform, iris: dict[str, list[float]]) -> None:
    with platform.client() as servery:
        answer = servery.predict("iris", iris)
    assert answer["label"].ravel().tolist() == ["setosa"] * 3
    assert answer["probabilities"].shape == (3, 3)
    np.testing.assert_allclose(answer["probabilities"].sum(axis=1), 1, atol=1e-5)


def test_a_served_model_says_why(platform: Platform, iris: dict[str, list[float]]) -> None:
    with platform.client() as servery:
        why = servery.explain("iris", iris)
    added = sum(values for name, values in why.items() if name.startswith("attribution."))
    explained = why["explained.score"] - why["explained.baseline_score"]
    np.testing.assert_allclose(added, explained, atol=0.05)
    shown = platform.cli("predict", "iris", "--input", json.dumps(iris), "--explain")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("ATTRIBUTION") == len(why["explained.score"])


def test_every_command_has_json_and_a_table(platform: Platform, iris: dict[str, Any]) -> None:
    with platform.client() as servery:
        dataset = next(d.name for d in servery.datasets.list() if d.display_name == "iris.csv")
    for command in (
        ["models", "list"],
        ["models", "versions", "iris"],
        ["datasets", "list"],
        ["datasets", "show", dataset],
        ["datasets", "validate", dataset, "--target", "species"],
        ["jobs", "list"],
        ["keys", "list"],
        ["predict", "iris", "--input", json.dumps(iris)],
    ):
        table = platform.cli(*command)
        assert table.returncode == 0, table.stderr
        assert len(table.stdout.splitlines()) >= 2
        document = platform.cli(*command, "-o", "json")
        assert json.loads(document.stdout)
    shown = platform.cli("models", "show", "iris", "1", "--file", "metrics.json")
    assert "accuracy" in json.loads(shown.stdout)


def test_usage_tells_what_the_engine_did_and_what_it_cost(
    platform: Platform, iris: dict[str, list[float]]
) -> None:
    created = json.loads(
        platform.cli("keys", "create", "--allow", "infer:iris", "-o", "json").stdout
    )
    priced = platform.cli("prices", "set", "-", "--thousand-rows", "1000")
    assert priced.returncode == 0, priced.stderr
    with platform.client(created["secret"]) as counted:
        for _ in range(2):
            counted.predict("iris", iris)
    deadline = time.monotonic() + 20
    command = ("usage", "--by", "api_key", "--by", "model", "--by", "version", "-o", "json")
    while True:
        rows = json.loads(platform.cli(*command).stdout)
        own = [row for row in rows if row.get("api_key") == created["api_key"]["name"]]
        inferred = [row for row in own if row.get("version")]
        if [row["requests"] for row in inferred] == ["2"] or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    (row,) = inferred
    assert row["model"] == "tenants/default/models/iris"
    assert (row["version"], row["rows"]) == ("1", "6")
    assert float(row["compute_time"].removesuffix("s")) > 0
    assert row["cost_nanos"] == str(6 * 10**9)
    assert "tenants/default/models/iris" in platform.cli("usage", "--by", "model").stdout


def test_keys_limit_and_end(platform: Platform, iris: dict[str, list[float]]) -> None:
    created = json.loads(
        platform.cli("keys", "create", "--allow", "infer:iris", "-o", "json").stdout
    )
    with platform.client(created["secret"]) as limited:
        limited.predict("iris", iris)
        for call in (
            lambda: limited.model_metadata("other"),
            lambda: list(limited.models.list()),
            lambda: list(limited.keys.list()),
            lambda: list(limited.jobs.list()),
        ):
            with pytest.raises(ApiError) as caught:
                call()
            assert caught.value.code.name == "PERMISSION_DENIED"
        assert platform.cli("keys", "revoke", created["api_key"]["name"]).returncode == 0
        with pytest.raises(ApiError) as caught:
            limited.predict("iris", iris)
        assert caught.value.code.name in ("PERMISSION_DENIED", "UNAUTHENTICATED")
    refused = platform.cli("models", "list", key=created["secret"])
    assert refused.returncode == 4
    assert "API_KEY_INVALID" in refused.stderr


@pytest.mark.parametrize(
    ("rows", "problem", "row"),
    [
        pytest.param(["a,b,y", "1,2,n", "3,x"], "RAGGED_ROW", "2", id="ragged"),
        pytest.param(["a,b,y"], "EMPTY", None, id="no rows"),
        pytest.param(
            ["a,b,y", *(f"{i},{i}.5,n" for i in range(40))], "ONE_CLASS", None, id="class"
        ),
        pytest.param(
            ["a,b,y", "1,2,n", "x,2,m", *(f"{i},{i}.5,{'nm'[i % 2]}" for i in range(40))],
            *("NOT_A_NUMBER", "2"),
            id="text in a number",
        ),
        pytest.param(
            ["a,b,y", "1,,n", *(f"{i},{i}.5,{'nm'[i % 2]}" for i in range(40))],
            *("MISSING_VALUE", "1"),
            id="missing",
        ),
        pytest.param(
            ["a,b,y", *(f"{i},{i}.5,{'nm'[i % 2]}" for i in range(40)), "3,3.5,m"],
            *("DUPLICATE_ROW", "41"),
            id="duplicate",
        ),
    ],
)
def test_bad_tables_are_refused_with_their_row(
    platform: Platform, tmp_path: Path, rows: list[str], problem: str, row: str | None
) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("\n".join(rows) + "\n")
    with platform.client() as servery, pytest.raises(ApiError) as caught:
        servery.jobs.create(_table_spec(servery.datasets.upload(file).name))
    assert caught.value.reason == "ERROR_REASON_DATASET_INVALID"
    assert caught.value.metadata["problem"] == problem
    assert caught.value.metadata.get("row") == row
    with platform.client() as servery:
        assert all(not model.name.endswith("/bad") for model in servery.models.list())


def _table_spec(dataset: str) -> Any:
    from servery.trainer.v1 import training_pb2 as pb

    return pb.TrainingSpec(
        dataset=dataset,
        tabular_classification=pb.TabularClassification(target="y"),
        publication=pb.Publication(model="tenants/default/models/bad"),
    )


def test_a_bad_array_file_is_refused(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "objects.npz"
    np.savez(file, images=np.array([{"a": 1}, None], dtype=object), labels=np.zeros(2))
    done = platform.cli("train", file, "--model", "objects")
    assert done.returncode == 2
    assert "DATASET_INVALID" in done.stderr
    assert "images" in done.stderr


def pids(data_dir: Path) -> dict[str, int]:
    """Return the process of each part of this platform, found by its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(data_dir) not in line or "servery_trainer.job" in line:
            continue
        for name in PROCESSES[:-1]:
            if f"servery_{name}\0" in line:
                found[name] = int(entry.name)
        if "envoy" in line.split("\0")[0]:
            found["envoy"] = int(entry.name)
    return found


class Caller:
    """Calls predict in a loop until told to stop, and remembers every failure and wrong answer."""

    def __init__(self, platform: Platform, rows: dict[str, list[float]]) -> None:
        self._platform = platform
        self._rows = rows
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.last_answer = 0.0
        self.failures: list[str] = []
        self.wrong = 0

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        with self._platform.client() as servery:
            while not self._stop.is_set():
                try:
                    answer = servery.predict("iris", self._rows)
                except ApiError as error:
                    self.failures.append(f"{error.code.name} {error}")
                else:
                    self.answered += 1
                    self.last_answer = time.monotonic()
                    self.wrong += answer["label"].ravel().tolist() != ["setosa"] * 3
                time.sleep(0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_killed_process_comes_back(
    platform: Platform, iris: dict[str, list[float]], name: str
) -> None:
    with Caller(platform, iris) as caller:
        _until(lambda: caller.answered)  # It has a token, which only the control plane gives.
        before = _until(lambda: pids(platform.data_dir).get(name))
        os.kill(before, signal.SIGKILL)
        after = _until(lambda: _other(pids(platform.data_dir).get(name), before))
        assert after != before
        back = time.monotonic()
        _until(lambda: caller.last_answer > back + 2)
    assert f"{name} was killed by SIGKILL" in platform.log.read_text()
    assert caller.wrong == 0
    if name in ("registry", "trainer", "gateway"):  # Not on the path of a request.
        assert caller.failures == []


def test_a_port_in_use_is_said_at_once(platform: Platform, tmp_path: Path) -> None:
    port = platform.address.rpartition(":")[2]
    done = platform.cli("up", "--port", port, "--data-dir", tmp_path / "data")
    assert done.returncode == 2
    assert "in use" in done.stderr


def _other(pid: int | None, not_this: int) -> int | None:
    return pid if pid != not_this else None


def _until(ask: Any, timeout_s: float = 30) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def test_a_restart_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("again")
    file = directory / "iris.csv"
    rows = write_iris(file)
    with servery_up(directory) as first:
        train = ["train", str(file), "--target", "species", "--model", "iris"]
        done = first.cli(*train, "--duplicates", "drop", "--max-epochs", "3")
        assert done.returncode == 0, done.stderr
        second_up = subprocess.run(
            [SERVERY, "up", "--port", "1", "--data-dir", first.data_dir],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert second_up.returncode == 2
        assert "in use" in second_up.stderr
    with servery_up(directory) as again, again.client(first.key) as servery:
        wait_served(servery, "iris")
        assert servery.predict("iris", rows)["label"].shape == (3, 1)
        assert [model.latest_version for model in servery.models.list()] == [1]


@pytest.fixture(autouse=True)
def _nothing_left(platform: Platform) -> Iterator[None]:
    yield
    assert "Traceback" not in platform.log.read_text()


def test_nothing_outlives_a_killed_servery_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("killed")
    with (directory / "up.log").open("w") as output:
        up = subprocess.Popen(
            [SERVERY, "up", "--port", str(free_port()), "--data-dir", directory / "data"],
            stdout=output,
            stderr=output,
        )
    try:
        _until(lambda: "servery: ready" in (directory / "up.log").read_text(), 60)
        assert pids(directory / "data").keys() == set(PROCESSES)
    finally:
        up.kill()
        up.wait()
    _until(lambda: not pids(directory / "data"))

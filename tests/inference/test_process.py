"""The process as an operator meets it: settings, help, metrics, what it refuses to start with."""

import subprocess
import sys
from pathlib import Path

import pytest

from servery_inference.cores import usable_cores
from servery_inference.sessions import require_provider
from servery_inference.settings import InferenceSettings
from servery_inference.warmup import inline_elements


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "servery_inference", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param({}, "model_repository", id="no source"),
        pytest.param({"registry": "unix:/r", "model_repository": Path()}, "registry", id="two"),
        pytest.param({"registry": "unix:/r"}, "cache_dir", id="no cache"),
        pytest.param({"model_repository": Path("/no/such")}, "model_repository", id="no directory"),
        pytest.param({"grpc_port": 70000}, "grpc_port", id="no port"),
        pytest.param({"execution_provider": "tpu"}, "execution_provider", id="no provider"),
        pytest.param({"intra_op_threads": 0}, "intra_op_threads", id="no thread"),
        pytest.param({"intra_op_threads": 10_000}, "intra_op_threads", id="too many threads"),
        pytest.param({"workers": 0}, "workers", id="no worker"),
        pytest.param({"workers": 2, "transport": "grpcio"}, "transport", id="workers on grpcio"),
        pytest.param(
            {"workers": 2, "rate_limit": "execution_count"}, "rate_limit", id="workers with limits"
        ),
        pytest.param(
            {"workers": 10_000, "intra_op_threads": 2}, "intra_op_threads", id="no share of cores"
        ),
        pytest.param({"listen": "0.0.0.0:1"}, "tls_certificate", id="open to all without TLS"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], named: str) -> None:
    source = {} if "registry" in settings or not settings else {"model_repository": Path()}
    with pytest.raises(ValueError, match=named):
        InferenceSettings(**(source | settings))  # type: ignore[arg-type]


def test_a_port_alone_means_loopback() -> None:
    settings = InferenceSettings(model_repository=Path(), grpc_port=8001)
    assert settings.listen == "127.0.0.1:8001"


def test_a_provider_that_is_not_built_in_stops_the_start(tmp_path: Path) -> None:
    done = run("--model-repository", str(tmp_path), "--execution-provider", "cuda")
    assert done.returncode == 1
    assert "inference-gpu" in done.stderr
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider"):
        require_provider("cuda")


def test_help_tells_the_options() -> None:
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--model-repository", "--registry", "--cache-dir", "--grpc-port"):
        assert flag in done.stdout


def test_workers_share_what_is_limited() -> None:
    settings = InferenceSettings(model_repository=Path(), workers=4)
    assert settings.share(10) == 3
    assert settings.engine.cores == settings.cores == max(1, usable_cores() // 4)


@pytest.mark.parametrize(
    ("quota", "most"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 10_000), ("nonsense", 10_000)],
)
def test_cores_are_those_of_the_quota(tmp_path: Path, quota: str, most: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert 1 <= usable_cores(file) <= most
    assert usable_cores(tmp_path / "none") >= 1


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([(10, 0.002), (80, 0.01)], 0, id="one row takes too long"),
        pytest.param([(10, 0.0002), (80, 0.0009)], 90, id="rows add up"),
        pytest.param([(10, 0.0001), (80, 0.0001)], 640, id="at most 8 times what was measured"),
        pytest.param([(6, 0.0001)], 6, id="the batch is fixed"),
        pytest.param([(0, 0.0001), (0, 0.0001)], 0, id="no input"),
    ],
)
def test_short_runs_are_told_by_their_size(points: list[tuple[int, float]], expected: int) -> None:
    assert inline_elements(points) == expected

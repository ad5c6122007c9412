"""Fixtures of the trainer service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from servery.trainer.v1 import training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer import frameworks
from tests.trainer.job_process import SuccessiveJobs
from tests.trainer.service import running_registry, scripted, write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a version that the registry takes."""
    directory = tmp_path_factory.mktemp("bundle")
    write_bundle(directory)
    return directory


@pytest.fixture(scope="session")
def command(bundle: Path) -> tuple[str, ...]:
    """The program of scripted jobs."""
    return scripted(bundle)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry that all tests share."""
    with running_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="session")
def jobs() -> Iterator[SuccessiveJobs]:
    """A process that trains what tests of all modules ask for."""
    jobs = SuccessiveJobs()
    yield jobs
    jobs.close()


@pytest.fixture(params=["keras", "pytorch"])
def framework(request: pytest.FixtureRequest) -> frameworks.Framework:
    """Each framework; which of them are installed depends on the environment."""
    wanted = training_pb2.Framework.Value(f"FRAMEWORK_{request.param.upper()}")
    try:
        frameworks.require(wanted, "framework")
    except FieldInvalidError:
        pytest.skip(f"{request.param} is not in this environment; `make test` runs in both")
    return frameworks.load(wanted)

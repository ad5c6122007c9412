"""Fixtures of the trainer service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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

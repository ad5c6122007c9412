"""The repository itself, with real graphs: what a lease holds, and what a retry does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from servery_inference.bundle import Bundle
from servery_inference.engine import LoadFailedError
from servery_inference.loading import Loader
from servery_inference.options import EngineSettings
from servery_inference.repository import ModelNotServedError, Repository
from tests.inference import graphs


@pytest.fixture
async def repository() -> AsyncIterator[Repository]:
    with Loader.open(EngineSettings()) as loader:
        async with Repository(loader) as repository:
            yield repository


async def states(repository: Repository) -> dict[int | None, str]:
    return {entry.version: entry.state for entry in repository.index()}


async def test_a_version_in_use_is_unloaded_only_after_its_last_request(
    repository: Repository, tmp_path: Path
) -> None:
    async def fetch(number: int) -> Bundle:
        return Bundle(tmp_path / "m" / str(number), golden_required=False)

    for number in (1, 2):
        graphs.store(tmp_path, "m", graphs.plus(number), number)
    unloaded = asyncio.Event()
    repository.want("m", {"production": 1}, fetch)
    await repository.settled()
    with repository.lease("m", "") as old:
        repository.want("m", {"production": 2}, fetch)
        await repository.settled()
        with repository.lease("m", "") as new:
            assert (old.version, new.version) == (1, 2)
        assert await states(repository) == {1: "UNLOADING", 2: "READY"}
        with pytest.raises(ModelNotServedError):
            repository.find("m", "1")
        repository.on_change(unloaded.set)
    await asyncio.wait_for(unloaded.wait(), 5)
    assert await states(repository) == {1: "UNAVAILABLE", 2: "READY"}
    assert [servable.version for servable in repository.servables()] == [2]


async def test_a_failed_version_is_tried_again_when_asked_to(
    repository: Repository, tmp_path: Path
) -> None:
    attempts: list[int] = []

    async def fetch(number: int) -> Bundle:
        attempts.append(number)
        if len(attempts) == 1:
            raise LoadFailedError("not now")
        return Bundle(tmp_path / "m" / "1", golden_required=False)

    graphs.store(tmp_path, "m", graphs.plus(1))
    for _ in range(2):  # The same wish again is no new attempt.
        repository.want("m", {"production": 1}, fetch)
        await repository.settled()
        assert repository.index()[0].reason == "not now"
    assert attempts == [1]
    repository.retry("m", 1)
    await repository.settled()
    assert repository.find("m", "").version == 1


async def test_golden_rows_may_be_required(repository: Repository, tmp_path: Path) -> None:
    async def fetch(number: int) -> Bundle:
        return Bundle(tmp_path / "m" / str(number), golden_required=True)

    graphs.store(tmp_path, "m", graphs.plus(1))
    repository.want("m", {"production": 1}, fetch)
    await repository.settled()
    assert repository.index()[0].reason == "the bundle has no golden.npz"

"""Uploads of the SDK against a trainer, over connections that break."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from servery.client import Client
from servery.datasets import Datasets
from servery.errors import ApiError
from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer.__main__ import trainer
from servery_trainer.settings import TrainerSettings

NOWHERE = "unix:/nonexistent/registry.sock"
CSV = "n,word\n" + "".join(f"{n},{'w' * (n % 90)}\n" for n in range(150_000))


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while content := await reader.read(65_536):
            writer.write(content)
            await writer.drain()


class Relay:
    """Passes bytes on to a server and cuts connections after so many, one limit after another."""

    def __init__(self, address: str, limits: list[int]) -> None:
        self._address = address
        self._limits = limits
        self.passed_bytes = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """For the length of the block, and until the last client has gone."""
        async with asyncio.TaskGroup() as connections:

            def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                connections.create_task(self._relay(reader, writer))

            server = await asyncio.start_server(relay, "127.0.0.1", 0)
            async with server:
                yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = self._limits.pop(0) if self._limits else 1 << 40
        host, port = self._address.rsplit(":", 1)
        there, back = await asyncio.open_connection(host, int(port))
        async with asyncio.TaskGroup() as answers:
            answers.create_task(pass_on(there, writer))
            with suppress(ConnectionError):
                before = self.passed_bytes
                while content := await reader.read(65_536):
                    back.write(content)
                    self.passed_bytes += len(content)
                    if self.passed_bytes - before >= limit:
                        break
            back.close()
            writer.close()


@asynccontextmanager
async def relayed(directory: Path, limits: list[int]) -> AsyncIterator[tuple[Relay, Datasets]]:
    settings = TrainerSettings(data_dir=directory, registry=NOWHERE, drain_s=0)
    async with trainer(settings) as server:
        relay = Relay(server.address, limits)
        async with relay.running() as address:
            with Client(address, timeout_s=10) as servery:
                yield relay, servery.datasets


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "words.csv"
    path.write_text(CSV)
    return path


async def test_an_upload_goes_on_after_every_break(file: Path, tmp_path: Path) -> None:
    size = len(CSV)
    async with relayed(tmp_path / "data", [size // 3, size // 3]) as (relay, datasets):
        dataset = await asyncio.to_thread(datasets.upload, file)
        assert (dataset.row_count, dataset.display_name) == (150_000, "words.csv")
        assert size < relay.passed_bytes < 1.7 * size
        relay.passed_bytes = 0
        assert await asyncio.to_thread(datasets.upload, file) == dataset
        assert relay.passed_bytes < 10_000


async def test_what_is_stored_otherwise_is_said(file: Path, tmp_path: Path) -> None:
    async with relayed(tmp_path / "data", []) as (_, datasets):
        types = {"n": pb.COLUMN_TYPE_TEXT}

        def work() -> None:
            dataset = datasets.upload(file, column_types=types)
            assert dataset.columns[0].declared
            assert datasets.upload(file) == datasets.find(dataset.name[-64:][:9]) == dataset
            with pytest.raises(ApiError) as error:
                datasets.upload(file, column_types={"word": pb.COLUMN_TYPE_NUMERIC})
            assert error.value.metadata["field"] == "header.column_types[word]"
            with pytest.raises(ValueError, match="0 datasets"):
                datasets.find("zz")

        await asyncio.to_thread(work)

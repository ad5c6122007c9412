"""One registry on one data directory: assembled, recovered after a crash, taken down."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import fcntl
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from servery.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from servery_registry.artifacts import LocalBlobs, Staging
from servery_registry.database import open_database
from servery_registry.publisher import Publisher
from servery_registry.sandbox import AdmissionLimits, Sandbox
from servery_registry.servicer import RegistryServicer
from servery_registry.sql_store import SqlStore
from servery_registry.watch import Watch
from servery_rpc.server import Service

log = logging.getLogger(__name__)

NAME: Final = "servery.registry.v1.RegistryService"


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that is ready to be served."""

    service: Service
    watch: Watch
    """Close it before the server drains: a watch never ends by itself."""


@asynccontextmanager
async def open_registry(
    data_dir: Path,
    max_bundle_bytes: int,
    limits: AdmissionLimits,
    now: Callable[[], datetime],
    database: URL | None = None,
) -> AsyncIterator[Registry]:
    """Open the registry in `data_dir`, created if missing, for the block.

    What a crash left half done is removed first.

    Args:
        data_dir: Holds the files of versions.
        max_bundle_bytes: Largest sum of the file sizes of a version.
        limits: Of the process that a new version is first loaded in.
        now: The clock.
        database: On PostgreSQL; None: an SQLite file in `data_dir`.

    Raises:
        RuntimeError: Another process has it open, or the database cannot be used.
        OSError: The directory cannot be written.
    """
    loop = asyncio.get_running_loop()
    with _locked(data_dir), open_database(database or data_dir / "registry.db") as engine:

        def announce() -> None:  # Writes run in threads, watchers on the loop.
            loop.call_soon_threadsafe(watch.announce)

        store = SqlStore(engine, now, announce)
        watch = Watch(store, store.log_id())
        blobs = LocalBlobs(data_dir / "blobs")
        for sha256 in sorted(blobs.sweep(store.referenced_blobs())):
            log.error("the bytes of blob %s are gone; a version that needs it cannot load", sha256)
        publisher = Publisher(store, blobs, Staging(data_dir / "staging"), Sandbox(limits))
        servicer = RegistryServicer(store, blobs, publisher, watch, max_bundle_bytes)
        yield Registry(
            Service(NAME, partial(add_RegistryServiceServicer_to_server, servicer)), watch
        )


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError("another registry process uses this data_dir") from None
        yield

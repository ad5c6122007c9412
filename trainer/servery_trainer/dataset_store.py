"""Datasets: files under their SHA-256, rows in the database, and the one way in."""

import asyncio
import hashlib
import os
import shutil
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Engine, insert, select

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import dataset_pb2 as pb
from servery_rpc.database import reads
from servery_rpc.errors import (
    DigestMismatchError,
    FieldInvalidError,
    ServeryError,
    UploadTooLargeError,
)
from servery_rpc.names import DatasetName
from servery_rpc.pages import Page
from servery_trainer.database import DATASET
from servery_trainer.datasets import inspect
from servery_trainer.declared import write_types
from servery_trainer.durable import sync_directory
from servery_trainer.intake import Upload, UploadLimitError, UploadLimits, finished, writing
from servery_trainer.store import page_key


class DatasetNotFoundError(ServeryError):
    """No dataset has this name."""

    reason = reasons.ERROR_REASON_DATASET_NOT_FOUND

    def __init__(self, name: DatasetName) -> None:
        super().__init__(f"{name} does not exist; upload the file first", name=str(name))


class DatasetStore:
    """The datasets of all tenants.

    Args:
        engine: The database with their rows.
        directory: Of their files; made if missing. One process at a time.
        limits: What uploads may take.
        now: The clock.
    """

    def __init__(
        self, engine: Engine, directory: Path, limits: UploadLimits, now: Callable[[], datetime]
    ) -> None:
        self._engine = engine
        self._reads = reads(engine)
        self._directory = directory
        self._staging = directory / ".staging"  # no tenant is named so
        self._limits = limits
        self._receiving: Counter[str] = Counter()
        self._now = now
        shutil.rmtree(self._staging, ignore_errors=True)  # Uploads that a crash broke off.
        self._staging.mkdir(parents=True)

    async def receive(self, upload: Upload, chunks: AsyncIterator[bytes]) -> pb.Dataset:
        """Store the bytes and return their dataset; the stored one if they were there before.

        However this ends before it returns, nothing is left.

        Raises:
            FieldInvalidError: A chunk is too large, or the bytes are stored otherwise.
            UploadTooLargeError: There are too many bytes.
            UploadStalledError: They do not come.
            UploadLimitError: The tenant does this too often at the same time.
            StorageFullError: The disk has no room.
            DigestMismatchError: They are not those that were declared.
            DatasetInvalidError: They cannot be read as a dataset.
        """
        tenant = upload.parent.tenant
        if self._receiving[tenant] >= self._limits.per_tenant:
            raise UploadLimitError(self._limits.per_tenant)
        self._receiving[tenant] += 1
        staged = self._staging / uuid.uuid4().hex
        try:
            with _created(staged) as file:
                sha256 = await self._take(file, chunks)
                await asyncio.to_thread(_sync, file)
            if upload.sha256 and upload.sha256 != sha256:
                raise DigestMismatchError(upload.display_name or "file", upload.sha256, sha256)
            return await finished(asyncio.to_thread(self.admit, staged, upload, sha256))
        finally:
            self._receiving[tenant] -= 1
            await asyncio.to_thread(staged.unlink, missing_ok=True)

    def get(self, name: DatasetName) -> pb.Dataset:
        """Return a dataset. Blocks.

        Raises:
            DatasetNotFoundError: There is none.
        """
        found = self._find(name)
        if found is None:
            raise DatasetNotFoundError(name)
        return found

    def list(self, tenant: str, page: Page) -> tuple[Sequence[pb.Dataset], str | None]:
        """Return a page of a tenant's datasets, the newest first, and the next key. Blocks."""
        query = select(DATASET.c.id, DATASET.c.message).where(DATASET.c.tenant == tenant)
        if page.after is not None:
            query = query.where(DATASET.c.id < page_key(page.after))
        with self._reads.begin() as connection:
            rows = connection.execute(
                query.order_by(DATASET.c.id.desc()).limit(page.size + 1)
            ).all()
        datasets = [pb.Dataset.FromString(row.message) for row in rows[: page.size]]
        return datasets, str(rows[page.size - 1].id) if len(rows) > page.size else None

    def path(self, name: DatasetName) -> Path:
        """Return the file of a dataset that exists; it never changes."""
        return self._directory / name.tenant / name.sha256

    async def _take(self, file: BinaryIO, chunks: AsyncIterator[bytes]) -> str:
        digest, size_bytes = hashlib.sha256(), 0

        def write(chunk: bytes) -> None:
            digest.update(chunk)
            self._limits.require_room(self._staging, len(chunk))
            with writing(len(chunk)):
                file.write(chunk)

        async for chunk in self._limits.timely(chunks):
            size_bytes += len(chunk)
            if size_bytes > self._limits.max_bytes:
                raise UploadTooLargeError(self._limits.max_bytes)
            await asyncio.to_thread(write, chunk)
        return digest.hexdigest()

    def admit(self, staged: Path, upload: Upload, sha256: str) -> pb.Dataset:
        """Make a dataset of a whole file, which is moved unless its bytes are stored. Blocks.

        Raises:
            FieldInvalidError: The bytes are stored otherwise.
            DatasetInvalidError: They cannot be read as a dataset.
        """
        name = DatasetName(upload.parent.tenant, sha256)
        if stored := self._find(name):
            _require_same(stored, upload)
            return stored
        info = inspect(staged, upload.format, upload.column_types)
        dataset = pb.Dataset(
            name=str(name),
            display_name=upload.display_name,
            format=upload.format,
            size_bytes=staged.stat().st_size,
            row_count=info.row_count,
            columns=info.columns,
        )
        dataset.create_time.FromDatetime(self._now().astimezone(UTC))
        final = self.path(name)
        final.parent.mkdir(exist_ok=True)
        write_types(final, upload.column_types)
        staged.replace(final)
        sync_directory(final.parent)
        with self._engine.begin() as connection:
            if stored := self._find(name):  # Another upload of the same bytes was faster.
                return stored
            connection.execute(
                insert(DATASET).values(
                    tenant=name.tenant,
                    sha256=sha256,
                    message=dataset.SerializeToString(),
                )
            )
        return dataset

    def _find(self, name: DatasetName) -> pb.Dataset | None:
        with self._reads.begin() as connection:
            message = connection.execute(
                select(DATASET.c.message).where(
                    DATASET.c.tenant == name.tenant, DATASET.c.sha256 == name.sha256
                )
            ).scalar_one_or_none()
        return None if message is None else pb.Dataset.FromString(message)


def _require_same(stored: pb.Dataset, upload: Upload) -> None:
    if stored.format != upload.format:
        known = pb.DatasetFormat.Name(stored.format)
        rule = f"be {known}, as which these bytes are stored"
        raise FieldInvalidError("header.format", upload.format, rule)
    types = {column.name: column.type for column in stored.columns}
    for column, kind in upload.column_types.items():
        if types.get(column) != kind:
            rule = (
                "be as these bytes are stored; a training job's column_types may say otherwise"
                " for itself"
            )
            raise FieldInvalidError(f"header.column_types[{column}]", kind, rule)


def _created(path: Path) -> BinaryIO:
    """Open a new file; on the event loop, as a thread would do so even after a cancellation."""
    return path.open("xb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())

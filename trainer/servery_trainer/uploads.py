"""Uploads that may break off and go on: what came so far is kept on disk, also over a restart.

An upload is a directory with two files: `upload`, what was said when it began, and `part`, the
bytes so far. The time of the last byte is that of `part`.
"""

import asyncio
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import dataset_pb2 as pb
from servery_rpc.errors import (
    DigestMismatchError,
    FieldInvalidError,
    ServeryError,
    UploadTooLargeError,
)
from servery_rpc.names import UploadName
from servery_trainer.dataset_store import DatasetStore
from servery_trainer.durable import sync_directory
from servery_trainer.intake import (
    StorageFullError,
    Upload,
    UploadLimitError,
    UploadLimits,
    finished,
    writing,
)


class UploadNotFoundError(ServeryError):
    """No upload has this name."""

    reason = reasons.ERROR_REASON_UPLOAD_NOT_FOUND

    def __init__(self, name: UploadName) -> None:
        super().__init__(f"{name} ended, expired or was never begun", name=str(name))


class UploadMovedError(ServeryError):
    """The bytes do not go on where the upload ends."""

    reason = reasons.ERROR_REASON_UPLOAD_MOVED

    def __init__(self, name: UploadName, received_bytes: int) -> None:
        super().__init__(
            f"{received_bytes} bytes of {name} are there; look up how many and go on there",
            name=str(name),
            received_bytes=str(received_bytes),
        )


class _Turn:
    """Who may write an upload: the latest that asked."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._number = 0

    def take(self) -> Callable[[], bool]:
        """Take over; the answer tells from then on whether nobody else did."""
        self._number += 1
        mine = self._number
        return lambda: self._number == mine


class Uploads:
    """The uploads of all tenants.

    Args:
        datasets: What they become.
        directory: Of their bytes, on the disk of the datasets; made if missing.
        limits: What they may take.
        now: The clock.
    """

    def __init__(
        self,
        datasets: DatasetStore,
        directory: Path,
        limits: UploadLimits,
        now: Callable[[], datetime],
    ) -> None:
        self._datasets = datasets
        self._directory = directory
        self._limits = limits
        self._now = now
        self._turns: dict[UploadName, _Turn] = {}
        self._creating = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        for begun in directory.glob(".*"):  # Whose beginning a crash broke off.
            shutil.rmtree(begun)
        self._pending()  # Which expire meanwhile.

    def create(
        self, upload: Upload, header: pb.CreateDatasetRequest.Header, size: int
    ) -> pb.Upload:
        """Begin an upload, or return the one under way. Blocks.

        Args:
            upload: What will arrive.
            header: The same as it was asked for.
            size: Its bytes.

        Raises:
            FieldInvalidError: It has no digest or size, or is under way otherwise.
            UploadTooLargeError: It has too many bytes.
            UploadLimitError: The tenant has too many under way.
            StorageFullError: The disk has no room.
        """
        if not upload.sha256:
            raise FieldInvalidError("header.sha256", "", "be given")
        if size < 1:
            raise FieldInvalidError("size_bytes", size, "be the size of the file, at least 1")
        if size > self._limits.max_bytes:
            raise UploadTooLargeError(self._limits.max_bytes)
        name = UploadName(upload.parent.tenant, upload.sha256)
        with self._creating:
            pending = self._pending()
            if name in pending:
                return _same(pending[name], header, size)
            own = [other for other in pending if other.tenant == name.tenant]
            if len(own) >= self._limits.per_tenant:
                raise UploadLimitError(self._limits.per_tenant, own)
            promised = sum(map(_missing, pending.values()))
            self._limits.require_room(self._directory, promised + size)
            self._begin(name, pb.Upload(name=str(name), header=header, size_bytes=size))
            return self._read(name)

    def get(self, name: UploadName) -> pb.Upload:
        """Return an upload. Blocks.

        Raises:
            UploadNotFoundError: There is none.
        """
        try:
            return self._read(name)
        except FileNotFoundError:
            raise UploadNotFoundError(name) from None

    async def append(
        self, name: UploadName, offset: int, chunks: AsyncIterator[bytes]
    ) -> pb.Upload:
        """Take the next bytes; those that came stay, however this ends.

        Raises:
            UploadNotFoundError: There is no such upload.
            UploadMovedError: `offset` is not where it ends, or another call took over.
            UploadTooLargeError: There are more bytes than were declared.
            UploadStalledError: They do not come.
            StorageFullError: The disk has no room; the upload is given up.
            FieldInvalidError: A chunk is too large.
        """
        turn = await self._turn(name)
        still_ours = turn.take()
        async with turn.lock:
            upload = await asyncio.to_thread(self.get, name)
        received = upload.received_bytes
        if offset != received:
            raise UploadMovedError(name, received)
        try:
            async for chunk in self._limits.timely(chunks):
                async with turn.lock:
                    if not still_ours():
                        raise UploadMovedError(name, received)
                    if received + len(chunk) > upload.size_bytes:
                        raise UploadTooLargeError(upload.size_bytes)
                    await finished(asyncio.to_thread(self._write, name, chunk))
                received += len(chunk)
        except StorageFullError:
            await self.delete(name)
            raise
        return await asyncio.to_thread(self.get, name)

    async def complete(self, name: UploadName) -> pb.Dataset:
        """Make a dataset of an upload that is all there; the upload ends, whatever comes of it.

        Raises:
            UploadNotFoundError: There is no such upload.
            UploadMovedError: Bytes are missing; the upload stays.
            DigestMismatchError: The bytes are not those that were declared.
            FieldInvalidError: They are stored otherwise.
            DatasetInvalidError: They cannot be read as a dataset.
        """
        turn = await self._turn(name)
        async with turn.lock:
            turn.take()
            upload = await asyncio.to_thread(self.get, name)
            if _missing(upload):
                raise UploadMovedError(name, upload.received_bytes)
            return await finished(asyncio.to_thread(self._complete, name, upload))

    async def delete(self, name: UploadName) -> None:
        """Give up an upload.

        Raises:
            UploadNotFoundError: There is none.
        """
        turn = await self._turn(name)
        async with turn.lock:
            turn.take()
            await asyncio.to_thread(self.get, name)
            await finished(asyncio.to_thread(self._remove, name))

    async def _turn(self, name: UploadName) -> _Turn:
        await asyncio.to_thread(self.get, name)  # else names that do not exist would fill memory
        return self._turns.setdefault(name, _Turn())

    def _begin(self, name: UploadName, upload: pb.Upload) -> None:
        made = self._directory / f".{uuid.uuid4().hex}"
        try:
            with writing(upload.size_bytes):
                made.mkdir()
                (made / "upload").write_bytes(upload.SerializeToString())
                (made / "part").touch()
                self._path(name).parent.mkdir(exist_ok=True)
                made.rename(self._path(name))
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _write(self, name: UploadName, chunk: bytes) -> None:
        part = self._path(name) / "part"
        self._limits.require_room(part, len(chunk))
        with writing(len(chunk)), part.open("ab") as file:
            file.write(chunk)

    def _complete(self, name: UploadName, upload: pb.Upload) -> pb.Dataset:
        try:
            part = self._path(name) / "part"
            with part.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if sha256 != name.sha256:
                called = upload.header.display_name or "file"
                raise DigestMismatchError(called, name.sha256, sha256)
            return self._datasets.admit(part, Upload.parse(upload.header), sha256)
        finally:
            self._remove(name)

    def _remove(self, name: UploadName) -> None:
        shutil.rmtree(self._path(name), ignore_errors=True)
        sync_directory(self._path(name).parent)
        self._turns.pop(name, None)

    def _pending(self) -> dict[UploadName, pb.Upload]:
        found = {}
        for path in sorted(self._directory.glob("[!.]*/*")):
            name = UploadName(path.parent.name, path.name)
            try:
                upload = self._read(name)
            except FileNotFoundError:  # it ends just now, or a crash ended it
                self._remove(name)
                continue
            if upload.expire_time.ToDatetime(UTC) <= self._now():
                self._remove(name)
            else:
                found[name] = upload
        return found

    def _read(self, name: UploadName) -> pb.Upload:
        path = self._path(name)
        upload = pb.Upload.FromString((path / "upload").read_bytes())
        state = (path / "part").stat()
        upload.received_bytes = state.st_size
        upload.expire_time.FromSeconds(int(state.st_mtime + self._limits.keep_s))
        return upload

    def _path(self, name: UploadName) -> Path:
        return self._directory / name.tenant / name.sha256


def _same(upload: pb.Upload, header: pb.CreateDatasetRequest.Header, size: int) -> pb.Upload:
    known = (upload.header.format, upload.header.column_types, upload.size_bytes)
    if (header.format, header.column_types, size) != known:
        rule = "be the same for the same bytes; delete the upload under way first"
        raise FieldInvalidError("header", upload.name, rule)
    return upload


def _missing(upload: pb.Upload) -> int:
    return upload.size_bytes - upload.received_bytes

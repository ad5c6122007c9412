"""What every upload has to keep to: its pieces, its pace, and the room there is on the disk."""

import asyncio
import errno
import re
import shutil
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import dataset_pb2 as pb
from servery_rpc.errors import FieldInvalidError, ServeryError
from servery_rpc.names import TenantName

T = TypeVar("T")

MAX_CHUNK_BYTES: Final = 1024**2

_MAX_DISPLAY_NAME: Final = 200
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class UploadStalledError(ServeryError):
    """The uploader fell silent."""

    reason = reasons.ERROR_REASON_UPLOAD_STALLED

    def __init__(self, stall_s: float) -> None:
        super().__init__(
            f"no byte came for {stall_s:g} s; look up how much of the upload is there and go on",
            stall_s=f"{stall_s:g}",
        )


class UploadLimitError(ServeryError):
    """A tenant has as many uploads under way as it may."""

    reason = reasons.ERROR_REASON_UPLOAD_LIMIT

    def __init__(self, limit: int, pending: Sequence[object] = ()) -> None:
        listed = f": finish or delete one of {', '.join(map(str, pending))}" if pending else ""
        super().__init__(f"{limit} uploads are under way{listed}", limit=str(limit))


class StorageFullError(ServeryError):
    """The disk has no room."""

    reason = reasons.ERROR_REASON_STORAGE_FULL

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"the server's disk has {free_bytes} bytes for datasets and {needed_bytes} more are"
            " needed; free some or add storage, then upload again",
            needed_bytes=str(needed_bytes),
            free_bytes=str(free_bytes),
        )


@dataclass(frozen=True, slots=True)
class Upload:
    """What is about to arrive."""

    parent: TenantName
    format: pb.DatasetFormat.ValueType
    display_name: str
    sha256: str
    """What the bytes must have; empty if the uploader does not say."""
    column_types: Mapping[str, pb.ColumnType.ValueType]
    """Of the columns that are to be what they do not look like."""

    @classmethod
    def parse(cls, header: pb.CreateDatasetRequest.Header) -> Self:
        """Parse the first message of an upload.

        Raises:
            FieldInvalidError: A field is malformed.
        """
        parent = TenantName.parse(header.parent, "header.parent")
        if header.format not in pb.DatasetFormat.values()[1:]:
            raise FieldInvalidError(
                "header.format",
                header.format,
                f"be one of {', '.join(pb.DatasetFormat.keys()[1:])}",
            )
        if len(header.display_name) > _MAX_DISPLAY_NAME:
            rule = f"have at most {_MAX_DISPLAY_NAME} characters"
            raise FieldInvalidError("header.display_name", header.display_name, rule)
        if header.sha256 and not _SHA256.fullmatch(header.sha256):
            raise FieldInvalidError("header.sha256", header.sha256, "be 64 lowercase hex digits")
        for column, kind in header.column_types.items():
            if kind not in pb.ColumnType.values()[1:]:
                rule = f"be one of {', '.join(pb.ColumnType.keys()[1:])}"
                raise FieldInvalidError(f"header.column_types[{column}]", kind, rule)
        return cls(
            parent, header.format, header.display_name, header.sha256, dict(header.column_types)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What uploads may take."""

    max_bytes: int
    """Largest file."""

    per_tenant: int = 16
    """Uploads of a tenant under way at the same time."""

    stall_s: float = 60.0
    """How long a call may say nothing, in seconds."""

    keep_s: float = 86_400.0
    """How long an upload that broke off is kept, in seconds."""

    spare_bytes: int = 256 << 20
    """Disk space that is left to everything else."""

    async def timely(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the pieces of a file as they come.

        Raises:
            UploadStalledError: One does not come.
            FieldInvalidError: One is too large.
        """
        while True:
            try:
                async with asyncio.timeout(self.stall_s):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise UploadStalledError(self.stall_s) from None
            if len(chunk) > MAX_CHUNK_BYTES:
                rule = f"have at most {MAX_CHUNK_BYTES} bytes"
                raise FieldInvalidError("chunk", f"{len(chunk)} bytes", rule)
            yield chunk

    def require_room(self, directory: Path, needed_bytes: int) -> None:
        """Refuse what the disk of `directory` cannot take beside the spare space.

        Raises:
            StorageFullError: It cannot.
        """
        free_bytes = max(shutil.disk_usage(directory).free - self.spare_bytes, 0)
        if needed_bytes > free_bytes:
            raise StorageFullError(needed_bytes, free_bytes)


@contextmanager
def writing(needed_bytes: int) -> Iterator[None]:
    """Say plainly that the disk is full if it turns out to be so inside the block."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(needed_bytes, 0) from None
        raise


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await work in a thread to its end even if the caller is cancelled, then be cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise

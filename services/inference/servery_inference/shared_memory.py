"""Regions of POSIX shared memory that clients on this machine share their tensors in.

Regions are read and written by copy, never mapped: a client that shrinks an object under a mapping
would kill this process, and one that changes it during a run would change what was checked.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_inference.request import Region, shown
from servery_rpc.errors import ServeryError

_KEY: Final = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.-]{0,250})")
_MAX_REGIONS: Final = 4096


class RegionExistsError(ServeryError):
    """A region has this name."""

    reason = reasons.ERROR_REASON_REGION_EXISTS

    def __init__(self, name: str) -> None:
        super().__init__(
            f"shared memory region '{shown(name)}' already in manager", region=shown(name)
        )


class RegionNotFoundError(ServeryError):
    """No region has this name."""

    reason = reasons.ERROR_REASON_REGION_NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Unable to find shared memory region: '{shown(name)}'", region=shown(name)
        )


class RegionInvalidError(ServeryError):
    """A region cannot be opened, or something does not lie within it."""

    reason = reasons.ERROR_REASON_REGION_INVALID

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message, region=shown(name))


@dataclass(frozen=True, slots=True)
class Registration:
    """One region as its client described it."""

    name: str

    key: str
    """Name of the shared-memory object."""

    offset: int
    """Where it begins in the object, in bytes."""

    size_bytes: int


class SharedMemory:
    """The registered regions. For one event loop; `read` and `write` for any thread.

    Args:
        root: Where the system keeps shared-memory objects.
    """

    def __init__(self, root: Path = Path("/dev/shm")) -> None:  # noqa: S108 not a temporary file
        self._root = root
        self._regions: dict[str, tuple[Registration, int]] = {}

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self]:
        """Hold the regions for the length of the block."""
        memory = cls()
        try:
            yield memory
        finally:
            memory.unregister("")

    def register(self, region: Registration) -> None:
        """Open an object that the client created.

        Raises:
            RegionExistsError: A region has this name.
            RegionInvalidError: There is no such object, or the region is not inside it.
        """
        if region.name in self._regions:
            raise RegionExistsError(region.name)
        if not region.name or len(self._regions) >= _MAX_REGIONS:
            raise RegionInvalidError(
                region.name,
                f"a region needs a name, and there may be {_MAX_REGIONS} of them at most",
            )
        self._regions[region.name] = (region, self._opened(region))

    def unregister(self, name: str) -> None:
        """Forget one region, or all if `name` is empty; an unknown one is forgotten already."""
        for known in list(self._regions) if not name else [name]:
            if known in self._regions:
                os.close(self._regions.pop(known)[1])

    def status(self, name: str) -> list[Registration]:
        """Return one region, or all if `name` is empty.

        Raises:
            RegionNotFoundError: No region has this name.
        """
        if not name:
            return [region for region, _ in self._regions.values()]
        if name not in self._regions:
            raise RegionNotFoundError(name)
        return [self._regions[name][0]]

    def read(self, part: Region) -> memoryview:
        """Copy a part of a region out of it.

        Raises:
            RegionNotFoundError: No region has this name.
            RegionInvalidError: The part is not inside it, or the object was shrunk.
        """
        descriptor, at = self._place(part)
        data = bytearray(part.size_bytes)
        with contextlib.closing(_duplicate(descriptor)) as file:
            got = os.preadv(file.descriptor, [data], at)
        if got != part.size_bytes:
            raise RegionInvalidError(
                part.name, f"the object of shared memory region '{shown(part.name)}' was shrunk"
            )
        return memoryview(data).toreadonly()

    def write(self, part: Region, data: bytes | memoryview, output: str) -> None:
        """Copy `data` to the beginning of a part of a region.

        Args:
            part: Where to.
            data: At most as long as `part`.
            output: What it is, for the error.

        Raises:
            RegionNotFoundError: No region has this name.
            RegionInvalidError: The part is not inside it, or too small.
        """
        if len(data) > part.size_bytes:
            raise RegionInvalidError(
                part.name,
                f"shared memory size specified with the request for output '{output}'"
                f" ({part.size_bytes} bytes) should be at least {len(data)} bytes to hold the"
                " results",
            )
        descriptor, at = self._place(part)
        with contextlib.closing(_duplicate(descriptor)) as file:
            os.pwritev(file.descriptor, [data], at)

    def _place(self, part: Region) -> tuple[int, int]:
        if part.name not in self._regions:
            raise RegionNotFoundError(part.name)
        region, descriptor = self._regions[part.name]
        if part.offset < 0 or part.offset + part.size_bytes > region.size_bytes:
            raise RegionInvalidError(
                part.name,
                f"bytes {part.offset} to {part.offset + part.size_bytes} are not inside shared"
                f" memory region '{shown(part.name)}', which has {region.size_bytes}",
            )
        return descriptor, region.offset + part.offset

    def _opened(self, region: Registration) -> int:
        match = _KEY.fullmatch(region.key)
        failure = RegionInvalidError(
            region.name, f"Unable to open shared memory region: '{shown(region.key)}'"
        )
        if match is None:
            raise failure
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self._root / match[1], flags)
        except OSError:
            raise failure from None
        found = os.fstat(descriptor)
        end = region.offset + region.size_bytes
        if not stat.S_ISREG(found.st_mode) or not 0 < region.size_bytes <= end <= found.st_size:
            os.close(descriptor)
            raise RegionInvalidError(
                region.name,
                f"failed to register shared memory region '{shown(region.name)}': bytes"
                f" {region.offset} to {end} are not inside an object of"
                f" {found.st_size if stat.S_ISREG(found.st_mode) else 0} bytes",
            )
        return descriptor


class _Duplicate:
    """A descriptor of its own, so that an unregistration meanwhile cannot make it another file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = os.dup(descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def _duplicate(descriptor: int) -> _Duplicate:
    return _Duplicate(descriptor)

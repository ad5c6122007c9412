"""Files of arrays of any format, opened alike: headers first, then values."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer.archives import ArrayHeader, open_archive
from servery_trainer.idx import open_pair
from servery_trainer.images import NATIVE, Sizing, open_folders
from servery_trainer.members import read_members

FORMATS: Final = frozenset({pb.DATASET_FORMAT_NPZ, pb.DATASET_FORMAT_IDX, pb.DATASET_FORMAT_IMAGES})
"""Those of arrays."""

_LOCAL_HEADER_BYTES: Final = 30 + 65_535  # of the first file of a ZIP


class Arrays(Protocol):
    """Arrays with as many rows each."""

    headers: Mapping[str, ArrayHeader]

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield all values of an array, flat, some at a time."""

    def load(self, name: str) -> NDArray[Any]:
        """Return an array."""


def sniff(path: Path) -> pb.DatasetFormat.ValueType:
    """Tell the format of an archive by its first file.

    Raises:
        DatasetInvalidError: It is no archive.
    """
    with path.open("rb") as file:
        start = file.read(_LOCAL_HEADER_BYTES)
    name_bytes = int.from_bytes(start[26:28], "little")
    if start.startswith(b"PK") and start[30 : 30 + name_bytes].endswith(b".npy"):
        return pb.DATASET_FORMAT_NPZ
    for member in read_members(path):
        if member.stream.read(2) in (b"\0\0", b"\x1f\x8b"):
            return pb.DATASET_FORMAT_IDX
        break
    return pb.DATASET_FORMAT_IMAGES


def open_arrays(
    path: Path,
    sizing: Sizing = NATIVE,
    format: pb.DatasetFormat.ValueType | None = None,  # noqa: A002
) -> AbstractContextManager[Arrays]:
    """Open a file of arrays.

    Args:
        path: The file.
        sizing: How image files become images of one size.
        format: Its format; None to see for oneself.

    Raises:
        DatasetInvalidError: It is none, is damaged or hostile, or breaks a limit.
    """
    found = sniff(path) if format is None else format
    if found == pb.DATASET_FORMAT_NPZ:
        return open_archive(path)
    if found == pb.DATASET_FORMAT_IDX:
        return open_pair(path)
    return open_folders(path, sizing)

"""Archives for tests: honest ones, in every form that is taken, and their parts."""

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def as_zip(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def as_tar(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def as_tar_gz(files: Mapping[str, bytes]) -> bytes:
    return gzip.compress(as_tar(files))


PACKERS = {"zip": as_zip, "tar": as_tar, "tar.gz": as_tar_gz}


def idx(values: NDArray[Any]) -> bytes:
    """An IDX file of unsigned bytes."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def image(
    *, mode: str = "RGB", size: tuple[int, int] = (4, 3), color: Any = 7, **save: Any
) -> bytes:
    """A file of one colour, a PNG unless `format` says otherwise."""
    content = io.BytesIO()
    Image.new(mode, size, color).save(content, **{"format": "PNG"} | save)
    return content.getvalue()

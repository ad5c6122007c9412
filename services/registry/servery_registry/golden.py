"""The golden rows of a bundle: docs/reference/bundle.md in code.

The file is hostile until read: nothing here trusts a size that it claims.
"""

import math
import zipfile
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy

from servery_registry.bundle import DTYPES, GOLDEN, BundleInvalidError, Signature, Tensor, fits

_MAX_GOLDEN_BYTES: Final = 256 * 1024 * 1024  # decoded, all arrays together


def check_golden(path: Path, signature: Signature) -> None:
    """Refuse a `golden.npz` that is not as docs/reference/bundle.md says.

    Reads at most a fixed number of decoded bytes, whatever the file claims.

    Raises:
        BundleInvalidError: The first thing that is wrong.
    """
    arrays = _read_arrays(path)
    expected = {f"input:{t.name}": t for t in signature.inputs}
    expected |= {f"output:{t.name}": t for t in signature.outputs}
    if any(key.startswith("explain:") for key in arrays):
        expected |= {f"explain:{t.name}": t for t in signature.explanation}
    if arrays.keys() != expected.keys() | {"tolerance"}:
        odd = sorted(arrays.keys() ^ (expected.keys() | {"tolerance"}))[0]
        what = "holds an array that is not in the signature:" if odd in arrays else "lacks"
        raise BundleInvalidError(GOLDEN, f"{what} {odd[:100]!r}")
    tolerance = arrays.pop("tolerance")
    if (
        tolerance.dtype != np.float64
        or tolerance.shape != ()
        or not 0 <= float(tolerance) < math.inf
    ):
        raise BundleInvalidError(GOLDEN, "must hold `tolerance` as a float64 scalar of at least 0")
    num_rows = {array.shape[:1] for array in arrays.values()}
    if len(num_rows) != 1 or num_rows <= {(), (0,)}:
        raise BundleInvalidError(
            GOLDEN, "must have the same number of rows, at least 1, in each array"
        )
    for key, tensor in expected.items():
        _check_array(key, arrays[key], tensor)


def _check_array(key: str, array: np.ndarray[Any, Any], tensor: Tensor) -> None:
    good = (
        array.dtype.kind == "U"
        if tensor.datatype == "BYTES"
        else array.dtype == np.dtype(DTYPES[tensor.datatype])
    )
    if not good:
        raise BundleInvalidError(
            GOLDEN, f"holds {key!r} as {array.dtype}, but its datatype is {tensor.datatype}"
        )
    real = Tensor(tensor.name, tensor.datatype, array.shape)
    if not fits(real, tensor):
        raise BundleInvalidError(
            GOLDEN, f"holds {key!r} in the shape {array.shape}, not {list(tensor.shape)}"
        )


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members)
            return {
                member.filename.removesuffix(".npy"): _read_array(
                    member.filename, archive.read(member)
                )
                for member in members
            }
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError):
        # OSError: a wrong offset makes zipfile seek to nowhere. RuntimeError: it is encrypted.
        raise BundleInvalidError(GOLDEN, "is not an NPZ archive") from None


def _check_members(members: Sequence[zipfile.ZipInfo]) -> None:
    # zipfile never yields more than the size that a member claims.
    if sum(member.file_size for member in members) > _MAX_GOLDEN_BYTES:
        raise BundleInvalidError(GOLDEN, f"holds more than {_MAX_GOLDEN_BYTES} bytes of arrays")
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        raise BundleInvalidError(GOLDEN, "is compressed in a way that NumPy does not write")
    if len({member.filename for member in members}) < len(members):
        raise BundleInvalidError(GOLDEN, "holds two arrays of one name")


def _read_array(name: str, raw: bytes) -> np.ndarray[Any, Any]:
    stream = BytesIO(raw)
    try:
        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(stream)
        if dtype.hasobject:
            raise BundleInvalidError(GOLDEN, f"holds {name[:100]!r} as objects; store texts as `U`")
        # Checked before NumPy sets aside what the header asks for.
        if math.prod(shape) * dtype.itemsize != len(raw) - stream.tell():
            raise ValueError(name)
        stream.seek(0)
        return npy.read_array(stream, allow_pickle=False)
    except (ValueError, MemoryError, OverflowError, SyntaxError, TypeError):
        raise BundleInvalidError(
            GOLDEN, f"holds {name[:100]!r}, which is not an NPY array"
        ) from None

"""Where training stood, on disk: enough to go on after the process was killed as if it never was.

A checkpoint is one NPZ file that replaces the one before in one step, so a process killed at any
moment leaves a whole one. Losing it costs time, never correctness: one that cannot be read, or that
another training left, is as good as none.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Arrays = Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A moment between two steps."""

    position: Any
    """JSON: what is not an array."""

    arrays: Mapping[str, Arrays]
    """Groups of arrays by name, which holds no `/`; they come back bit for bit."""


def digest(arrays: Arrays) -> str:
    """Return the SHA-256 of arrays in their order, each with its type and shape."""
    sha256 = hashlib.sha256()
    for array in arrays:
        little_endian = np.asarray(array, array.dtype.newbyteorder("<"))
        sha256.update(f"{little_endian.dtype.str}{little_endian.shape}".encode())
        sha256.update(little_endian.tobytes())
    return sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Keeps the last checkpoint of one training."""

    directory: Path
    """Made if missing."""

    fingerprint: str
    """Of everything that decides the outcome; the checkpoint of another one is passed over."""

    number: int = 0
    """Which of the trainings that share the directory it is."""

    @property
    def _path(self) -> Path:
        return self.directory / f"checkpoint{self.number or ''}.npz"

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint. A full disk is logged, not raised: training can go on."""
        header = {
            "fingerprint": self.fingerprint,
            "position": checkpoint.position,
            "counts": {name: len(arrays) for name, arrays in checkpoint.arrays.items()},
        }
        entries = {
            f"{name}/{index}": np.asarray(array)
            for name, arrays in checkpoint.arrays.items()
            for index, array in enumerate(arrays)
        }
        entries["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        partial = self._path.with_suffix(".partial")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **entries)
            partial.replace(self._path)
        except OSError as error:
            partial.unlink(missing_ok=True)  # A full disk needs the room for something else.
            log.warning("the checkpoint cannot be written: %s", error.strerror)

    def load(self) -> Checkpoint | None:
        """Return the checkpoint; None if there is none, or none of this training."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as entries:
                header = json.loads(entries["header"].tobytes())
                if header["fingerprint"] != self.fingerprint:
                    log.warning("the checkpoint is of another training, it is passed over")
                    return None
                arrays = {
                    name: [entries[f"{name}/{index}"] for index in range(count)]
                    for name, count in header["counts"].items()
                }
                return Checkpoint(header["position"], arrays)
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("the checkpoint cannot be read: %s", type(error).__name__)
            return None

"""Secrets that are made once and then stay: files that only this user can read."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def make_private_directory(path: Path) -> None:
    """Make the directory, for this user alone, if it is missing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def load_or_create(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return the content of `path`; if it is missing, first write there what `make` returns.

    A crash leaves no half file, and of two processes that start at once both return the same.
    """
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # Another process was first; its secret counts.
        finally:
            draft.unlink()
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    return path.read_bytes()

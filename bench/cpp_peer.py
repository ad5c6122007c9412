"""Builds the C++ gRPC server of `peers/cpp`, which the benchmarks compare with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import onnxruntime as ort

SOURCES: Final = Path(__file__).parent / "peers" / "cpp"
BUILD: Final = SOURCES.parents[2] / "build" / "cpp"


class CannotBuildError(Exception):
    """Something that the server is built with is missing."""


def build() -> Path:
    """Return the program, built if it is not there or not up to date, which takes minutes.

    Raises:
        CannotBuildError: It cannot be; the message is the end of what the build printed.
    """
    (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*")
    command = ["make", "--silent", "-C", SOURCES, f"ORT={library}", f"BUILD={BUILD}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    except FileNotFoundError:
        raise CannotBuildError("there is no make") from None
    except subprocess.CalledProcessError as error:
        raise CannotBuildError(error.stderr.strip()[-400:]) from None
    return BUILD / "server"

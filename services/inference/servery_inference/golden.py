"""Golden rows: real inputs with the answers of the trained network, to be reproduced where served.

The file is described in docs/reference/bundle.md.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from servery_inference.engine import Engine, LoadFailedError, RunFailedError
from servery_inference.request import Array
from servery_inference.signature import Tensor

FILE: Final = "golden.npz"
_MAX_UNPACKED_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Golden:
    """Rows and the answers to them, by tensor name; the same number of rows in each."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: float

    explanations: Mapping[str, Array] = field(default_factory=dict)
    """What the graph that explains gives for the rows; empty if that is not known."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `golden.npz`.

        Raises:
            LoadFailedError: It is not such a file.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > _MAX_UNPACKED_BYTES:
                raise LoadFailedError(
                    f"{FILE} unpacks to {unpacked} bytes; at most {_MAX_UNPACKED_BYTES} are read"
                )
            with np.load(path, allow_pickle=False) as arrays:
                members = {name: arrays[name] for name in arrays.files}
            tolerance = float(members["tolerance"])
        except KeyError:
            raise LoadFailedError(f"{FILE} has no array 'tolerance'") from None
        except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile):
            raise LoadFailedError(f"{FILE} is not an NPZ file without objects") from None
        return cls(
            _under("input:", members),
            _under("output:", members),
            tolerance,
            _under("explain:", members),
        )

    def check(self, engine: Engine) -> None:
        """Run the rows and compare the answers.

        Raises:
            LoadFailedError: They are not reproduced within the tolerance, or are of another model.
        """
        self._check(engine, self.outputs)

    def check_explanation(self, engine: Engine) -> None:
        """Compare what the graph that explains gives, if it is known; see `check`.

        Attributions are parts of a whole: they differ by a share of the largest of them.
        """
        if self.explanations:
            floats = [array for array in self.explanations.values() if array.dtype.kind == "f"]
            sizes = (np.abs(np.nan_to_num(array)).max(initial=1.0) for array in floats)
            self._check(engine, self.explanations, float(max(sizes, default=1.0)))

    def _check(
        self, engine: Engine, expected: Mapping[str, Array], scale: float | None = None
    ) -> None:
        _check_names("input", self.inputs, engine.signature.inputs)
        _check_names("output", expected, engine.signature.outputs)
        try:
            got = engine.run(self.inputs, list(expected))
        except RunFailedError as error:
            raise LoadFailedError(f"the golden rows cannot be run: {error}") from None
        for (name, golden), answer in zip(expected.items(), got, strict=True):
            _compare(name, answer, golden, self.tolerance, scale)

    def rows(self, count: int) -> dict[str, Array]:
        """Return `count` rows of input, repeating them as needed."""
        return {
            name: np.take(array, np.arange(count) % len(array), axis=0)
            for name, array in self.inputs.items()
        }


def _under(prefix: str, members: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array.astype(object) if array.dtype.kind == "U" else array
        for name, array in members.items()
        if name.startswith(prefix)
    }


def _check_names(kind: str, golden: Mapping[str, Array], tensors: Mapping[str, Tensor]) -> None:
    if set(golden) != set(tensors):
        raise LoadFailedError(
            f"{FILE} has the {kind}s {sorted(golden)}, but the graph has {sorted(tensors)}"
        )
    for name, tensor in tensors.items():
        array = golden[name]
        if array.dtype != tensor.datatype.numpy or not tensor.fits(array.shape) or not array.size:
            raise LoadFailedError(
                f"{kind} {name!r} of {FILE} is {array.dtype} of shape {list(array.shape)}, but the"
                f" graph has {tensor.datatype.wire} of shape {list(tensor.shape)}"
            )


def _compare(
    name: str, answer: Array, golden: Array, tolerance: float, scale: float | None
) -> None:
    if answer.shape != golden.shape:
        raise LoadFailedError(
            f"output {name!r} has the shape {list(answer.shape)} for the golden rows, not"
            f" {list(golden.shape)}"
        )
    if golden.dtype.kind != "f":
        wrong = np.flatnonzero(answer != golden)
        if len(wrong):
            raise LoadFailedError(
                f"golden row {_row(wrong[0], golden)}: output {name!r} is"
                f" {str(answer.flat[wrong[0]])[:100]!r}, not {str(golden.flat[wrong[0]])[:100]!r}"
            )
        return
    error = relative_error(answer, golden, scale)
    if error.max(initial=0) > tolerance:
        raise LoadFailedError(
            f"golden row {_row(error.argmax(), golden)}: output {name!r} differs by"
            f" {error.max():.3g} (relative), more than the tolerance {tolerance:.3g}"
        )


def relative_error(answer: Array, golden: Array, scale: float | None = None) -> Array:
    """Return `|answer - golden| / max(|golden|, scale)`, infinite where only one is NaN.

    Without a scale it is the mean of the finite |golden|, or 1 if that is more: a number near 0
    among large ones has their rounding.
    """
    got, expected = answer.astype(np.float64), golden.astype(np.float64)
    if scale is None:
        sizes = np.abs(expected[np.isfinite(expected)])
        scale = max(float(sizes.mean()), 1.0) if sizes.size else 1.0
    with np.errstate(invalid="ignore"):  # Infinite minus infinite.
        error: Array = np.abs(got - expected) / np.maximum(np.abs(expected), scale)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return np.where(same, 0.0, np.nan_to_num(error, nan=np.inf, posinf=np.inf))


def _row(at: Any, array: Array) -> int:
    """The row of the element at flat index `at`."""
    return int(at) * len(array) // array.size if array.ndim else 0

"""Archives of PNG and JPEG files in one folder per class, read as `images` and `labels`.

Shape suffixes: H height, W width, C channels.
"""

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from servery.trainer.v1 import training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.archives import ArrayHeader
from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.fields import known
from servery_trainer.folders import labelled
from servery_trainer.members import MAX_DECODED_BYTES, Member

IMAGES: Final = "images"
LABELS: Final = "labels"
MAX_PIXELS: Final = 50_000_000
"""Of one image."""

MAX_SIZE: Final = 4096
"""Pixels along an axis of the images that are learned from."""

_MAX_FILE_BYTES: Final = 64 << 20
_PIXEL_RATIO: Final = 1000
"""Bytes of pixels per stored byte, beyond `_FREE_PIXEL_BYTES`: plain drawings shrink so much."""

_FREE_PIXEL_BYTES: Final = 1 << 30
_MAX_PIXEL_BYTES: Final = 64 << 30
_GREY: Final = frozenset({"1", "L", "LA"})
_COLOURED: Final = frozenset({"P", "PA", "RGB", "RGBA"})
_ORIENTATION: Final = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How image files become images of one size."""

    fit: training_pb2.ImageFit.ValueType = training_pb2.IMAGE_FIT_REFUSE
    width: int = 0
    """Pixels; 0 with REFUSE."""
    height: int = 0
    """Pixels; 0 with REFUSE."""

    @classmethod
    def parse(cls, message: training_pb2.ImageSizing, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A size is out of its range, missing, or not asked for.
        """
        fit = training_pb2.ImageFit.ValueType(
            known(message.fit, training_pb2.ImageFit, f"{path}.fit")
        )
        refuse = fit == training_pb2.IMAGE_FIT_REFUSE
        sizes = {"width": message.width, "height": message.height}
        for name, size in sizes.items():
            if not (size == 0 if refuse else 1 <= size <= MAX_SIZE):
                rule = "be 0 where no fit is asked for" if refuse else f"be 1 to {MAX_SIZE}"
                raise FieldInvalidError(f"{path}.{name}", size, rule)
        return cls(fit=fit, **sizes)

    def to_proto(self) -> training_pb2.ImageSizing:
        """Render it; `parse` gives an equal value back."""
        return training_pb2.ImageSizing(fit=self.fit, width=self.width, height=self.height)

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the image in the size asked for; unchanged with REFUSE."""
        if self.fit == training_pb2.IMAGE_FIT_REFUSE:
            return image
        size, how = (self.width, self.height), Image.Resampling.BILINEAR
        if self.fit == training_pb2.IMAGE_FIT_STRETCH:
            return image.resize(size, how)
        if self.fit == training_pb2.IMAGE_FIT_CROP:
            return ImageOps.fit(image, size, how)
        return ImageOps.pad(image, size, how)


NATIVE: Final = Sizing()
"""Images as large as their files say."""


@dataclass(frozen=True, slots=True)
class _Glance:
    """What a file says of itself before it is decoded."""

    label: str
    width: int
    height: int
    grey: bool


class ImageFolders:
    """The arrays `images` and `labels` of an archive. Made by `open_folders`."""

    def __init__(self, path: Path, glances: Sequence[_Glance], sizing: Sizing) -> None:
        self._path = path
        self._glances = glances
        self._sizing = sizing
        self._mode = "L" if all(glance.grey for glance in glances) else "RGB"
        sizes = {(glance.height, glance.width) for glance in glances}
        size = sizes.pop() if len(sizes) == 1 else (-1, -1)
        if sizing.fit != training_pb2.IMAGE_FIT_REFUSE:
            size = (sizing.height, sizing.width)
        channels = len(self._mode)
        self._labels = np.array([glance.label for glance in glances])
        self.headers: Mapping[str, ArrayHeader] = {
            IMAGES: ArrayHeader(
                name=IMAGES,
                shape=(len(glances), *size, channels),
                dtype=np.dtype(np.uint8),
                fortran_order=False,
            ),
            LABELS: ArrayHeader(
                name=LABELS,
                shape=self._labels.shape,
                dtype=self._labels.dtype,
                fortran_order=False,
            ),
        }
        """By name; the height and width of the images are -1 if they differ."""

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield all values of an array, flat, some at a time.

        Raises:
            DatasetInvalidError: A file is damaged.
        """
        if name == LABELS:
            yield self._labels
            return
        for _, member in labelled(self._path):
            yield self._decode(member).ravel()

    def load(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises:
            DatasetInvalidError: A file is damaged, an image has another size than the first and no
                other was asked for, or together they are too large.
        """
        if name == LABELS:
            return self._labels
        shape = self.headers[IMAGES].shape
        if -1 in shape:
            raise self._uneven()
        if np.prod([float(length) for length in shape]) > MAX_DECODED_BYTES:
            raise DatasetInvalidError(
                Problem.TOO_LARGE,
                f"{shape[0]} images of {shape[2]}x{shape[1]} pixels take more than"
                f" {MAX_DECODED_BYTES >> 30} GiB; choose a smaller size",
                array=IMAGES,
            )
        images = np.empty(shape, np.uint8)
        for row, (_, member) in enumerate(labelled(self._path)):
            images[row] = self._decode(member)
        return images

    def _decode(self, member: Member) -> NDArray[np.uint8]:
        with _open(member) as image:
            image.load()
            if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
                _refuse_transparent(image, member)
            upright = ImageOps.exif_transpose(image).convert(self._mode)
            pixels = np.asarray(self._sizing.apply(upright), np.uint8)
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def _uneven(self) -> DatasetInvalidError:
        first = self._glances[0]
        row, other = next(
            (row, glance)
            for row, glance in enumerate(self._glances, start=1)
            if (glance.width, glance.height) != (first.width, first.height)
        )
        return DatasetInvalidError(
            Problem.WRONG_SHAPE,
            f"image {row} has {other.width}x{other.height} pixels and the first"
            f" {first.width}x{first.height}; say by the task's `sizing` what size all shall have"
            " and how",
            row=row,
            array=IMAGES,
        )


@contextmanager
def open_folders(path: Path, sizing: Sizing = NATIVE) -> Iterator[ImageFolders]:
    """Open an archive of images after a look at every file.

    Raises:
        DatasetInvalidError: A file is neither PNG nor JPEG, has too many pixels or a kind of pixels
            that is not learned from; or see `labelled`.
    """
    glances = []
    allowed = min(_MAX_PIXEL_BYTES, max(_FREE_PIXEL_BYTES, _PIXEL_RATIO * path.stat().st_size))
    left = allowed
    for label, member in labelled(path):
        with _open(member) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            left -= 3 * width * height
            if left < 0:
                raise DatasetInvalidError(
                    Problem.TOO_LARGE,
                    f"the images unpack to more than {allowed} bytes of pixels; for a file of its"
                    " size that is the limit",
                    array=IMAGES,
                )
            glances.append(_Glance(label, width, height, grey=image.mode in _GREY))
    yield ImageFolders(path, glances, sizing)


@contextmanager
def _open(member: Member) -> Iterator[Image.Image]:
    content = member.read(_MAX_FILE_BYTES)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            _check(image, member)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(member) from None
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error):
        raise DatasetInvalidError(
            Problem.MALFORMED,
            f"the file {shown(member.name)!r} cannot be read as PNG or JPEG; save it again or"
            " leave it out",
            file=member.name,
        ) from None


def _check(image: Image.Image, member: Member) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(member)
    if image.mode not in _GREY | _COLOURED:
        raise DatasetInvalidError(
            Problem.WRONG_DTYPE,
            f"the file {shown(member.name)!r} has pixels of the kind {image.mode}; save it with 8"
            " bits for grey, or for each of red, green and blue",
            file=member.name,
        )


def _too_many_pixels(member: Member) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.TOO_LARGE,
        f"the file {shown(member.name)!r} has more than {MAX_PIXELS} pixels; that is the limit",
        file=member.name,
    )


def _refuse_transparent(image: Image.Image, member: Member) -> None:
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    if lowest != 255:
        raise DatasetInvalidError(
            Problem.WRONG_DTYPE,
            f"the file {shown(member.name)!r} has transparent pixels; save it on a background",
            file=member.name,
        )

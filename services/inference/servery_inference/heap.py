"""How this process keeps the memory that large messages leave behind."""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # Of malloc.h, as is the next.
_M_MMAP_THRESHOLD: Final = -3
_LARGEST_BLOCK_BYTES: Final = 64 << 20
_KEPT_BYTES: Final = 256 << 20


def keep_freed_blocks() -> bool:
    """Let malloc keep blocks up to 64 MiB, up to 256 MiB of them, for the next message.

    By default glibc gives such blocks back to the kernel as soon as they are free and gets them
    again for the next request, page by page: of a request of 600 KB those faults are most of the
    cost. To be called before threads start.

    Returns:
        Whether it was done: another C library may not offer it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mmap, trim = (_M_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES)
    return all(mallopt(option, limit) == 1 for option, limit in (mmap, trim))

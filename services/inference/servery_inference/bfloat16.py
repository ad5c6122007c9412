"""BF16 numbers as the 16 bits they are, and as FP32, of which they are the upper half."""

import numpy as np

from servery_inference.request import Array


def to_float32(bits: Array) -> Array:
    """Widen; exact."""
    return (bits.astype("<u4") << np.uint32(16)).view("<f4")


def from_float32(values: Array) -> Array:
    """Round to the nearest, of two equally near to the even one; NaN stays NaN."""
    bits = values.astype("<f4").view("<u4").astype("<u8")
    rounded = ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)) & 0xFFFF
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")

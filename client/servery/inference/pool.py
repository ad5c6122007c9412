"""The descriptor pool of the inference contract.

Not the default pool: tritonclient registers the same symbols there, and whichever came second
could not be imported.
"""

from functools import cache

from google.protobuf.descriptor_pool import DescriptorPool


@cache
def pool() -> DescriptorPool:
    """Return the one pool that holds package `inference`."""
    return DescriptorPool()

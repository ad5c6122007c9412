"""The Envoy API without generated code: messages from a descriptor pool of our own.

The pool is private because the packages that bring generated code for Envoy's API overwrite files
of other packages. gateway/make_descriptors.py makes the descriptors.
"""

import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

TYPE_PREFIX: Final = "type.googleapis.com/"


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """Return the one pool that holds Envoy's API."""
    packed = files("servery_gateway").joinpath("envoy_api.zlib").read_bytes()
    loaded = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(zlib.decompress(packed)).file:
        loaded.AddSerializedFile(file.SerializeToString())
    return loaded


@cache
def message_class(name: str) -> type[Message]:
    """Return the class of the message of full name `name`."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(name))


def parse(type_url: str, resource: Mapping[str, Any]) -> Message:
    """Return the resource, given in protobuf's JSON form, as a message.

    Args:
        type_url: Its type, such as `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
        resource: Its fields.

    Raises:
        json_format.ParseError: It does not fit the type.
    """
    message = message_class(type_url.removeprefix(TYPE_PREFIX))()
    return json_format.ParseDict(dict(resource), message, descriptor_pool=pool())

"""An inference request that is nothing but the bytes of the one input of its model.

Texts that clients compare are those of the reference server.
"""

import struct

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.codec import parse
from servery_inference.http_codec import HttpRequest
from servery_inference.request import InferenceRequestInvalidError, shown, shown_shape
from servery_inference.signature import Signature, Tensor


def raw_request(model: str, version: str, body: bytes, signature: Signature) -> HttpRequest:
    """Make a request of a body; its outputs are wanted as bytes too.

    Args:
        model: Name on the wire.
        version: From the path; may be empty.
        body: One row of the input, where the model takes rows. Elements lie one behind the other;
            a text is the one element of its input, and stands as it is.
        signature: Of the model.

    Raises:
        InferenceRequestInvalidError: The model has not exactly one input, or the body does not say
            what its shape is.
    """
    if len(signature.inputs) != 1:
        raise InferenceRequestInvalidError(
            "Raw request must only have 1 input (found 1) to be deduced but got"
            f" {len(signature.inputs)} inputs in '{shown(model)}' model configuration",
            model,
        )
    (tensor,) = signature.inputs.values()
    rows = (1,) if signature.max_batch_size else ()
    shape = (*rows, *_shape(model, tensor, tensor.shape[len(rows) :], len(body)))
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype.wire, shape=shape)
    if tensor.datatype.is_bytes:
        body = struct.pack("<I", len(body)) + body
    return HttpRequest(parse(request, [memoryview(body)], 0), {}, binary_default=True)


def _shape(model: str, tensor: Tensor, axes: tuple[int, ...], num_bytes: int) -> tuple[int, ...]:
    """Return the shape of a row, the size of a free axis being what the bytes leave for it."""
    name = shown(tensor.name)
    if tensor.datatype.is_bytes:
        if any(size != 1 for size in axes):
            raise InferenceRequestInvalidError(
                f"For BYTE datatype raw input '{name}', the model must have input shape [1], not"
                f" {shown_shape(axes)}",
                model,
            )
        return axes
    if axes.count(-1) > 1:
        raise InferenceRequestInvalidError(
            f"The shape of the raw input '{name}' can not be deduced because there are more than"
            f" one variable-sized dimension in {shown_shape(axes)}",
            model,
        )
    known_bytes = tensor.datatype.numpy.itemsize
    for size in axes:
        known_bytes *= max(size, 1)
    return tuple(num_bytes // known_bytes if size == -1 else size for size in axes)

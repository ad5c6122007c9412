"""Requests of one form: which say the same but for their id and the bytes of their tensors.

Clients repeat themselves. What a form means to a version of a model, and how the answers begin, is
worked out once; after that a request costs no protobuf message and no look at its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Self, TypeAlias

import numpy as np

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference import wire
from servery_inference.batch import NotRowWiseError
from servery_inference.request import NO_TERMS, Array, InferRequest
from servery_inference.servable import Servable
from servery_inference.tensors import bind, wanted_outputs

_ID: Final = pb.ModelInferRequest.ID_FIELD_NUMBER
_RAW: Final = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_ANSWER_ID: Final = pb.ModelInferResponse.ID_FIELD_NUMBER
_ANSWER_RAW: Final = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER

_MAX_HEADS: Final = 64
_LOOKED_AT: Final = ("BOOL", "BYTES")
"""Datatypes whose elements are checked one by one."""


Reply: TypeAlias = tuple[bytes, tuple[tuple[str, str], ...]]
"""The answer to a request: a serialized `ModelInferResponse`, and the metadata behind it."""

Places: TypeAlias = Sequence[tuple[int, int]]
"""Where the raw tensors of a message begin and end in it."""

_shape: Final = attrgetter("shape")


@dataclass(slots=True, eq=False)
class PlainRequest:
    """A request, cut into what is its own."""

    message: bytes
    places: Places

    id: bytes
    arrival_ns: int
    """By `time.perf_counter_ns`."""

    deadline: float | None
    """When its caller stops waiting, by `time.monotonic`; None for never."""

    is_metered: bool
    """Whether its caller wants to know what it used."""

    deliver: Callable[[Reply | None], None]
    """Gets the answer, if it is not there at once; None leaves the request to the general way."""


def cut(message: bytes) -> tuple[bytes, bytes, list[tuple[int, int]]] | None:
    """Cut a serialized `ModelInferRequest` into its form, its id, and the places of its tensors.

    Returns:
        None if it is less plain than what clients send.
    """
    return wire.part(message, _ID, _RAW)


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands in the answers to a number of requests that were run together."""

    before: bytes
    """The id comes behind it."""

    after: bytes
    tensors: Sequence[tuple[bytes, int]]
    """Of each output, what stands before it, and its bytes in one answer."""


@dataclass(slots=True, eq=False)
class Form:
    """What requests of one form mean to one version of a model."""

    model: str
    version: str
    """As the request has it; empty for none."""

    servable: Servable

    inputs: Sequence[tuple[str, np.dtype[Any], tuple[int, ...], int]]
    """Name, element type, shape inside the graph and bytes of each, in the order of the form."""

    outputs: Sequence[str]
    rows: int
    size: int
    """Of one request; see `costs`."""

    is_large: bool = False
    """Whether the answers are too large to be written on the event loop."""

    _heads: dict[tuple[int, tuple[tuple[int, ...], ...]], _Head] = field(default_factory=dict)

    @classmethod
    def of(cls, request: InferRequest, servable: Servable) -> Self | None:
        """Work out what requests like this one mean; None if they take the general way.

        Raises:
            InferenceRequestInvalidError: It does not fit the model.
        """
        if request.terms != NO_TERMS or request.placements or request.shares_memory:
            return None
        if request.explain:
            return None
        if not servable.is_direct or any(
            tensor.raw is None or tensor.datatype in _LOOKED_AT for tensor in request.inputs
        ):
            return None
        signature = servable.signature
        outputs = wanted_outputs(request, signature)
        if any(signature.outputs[name].datatype.is_bytes for name in outputs):
            return None
        feed = bind(request, signature)
        arrays = [(tensor.name, feed[tensor.name]) for tensor in request.inputs]
        if not arrays:
            return None
        return cls(
            request.model,
            request.version,
            servable,
            [(name, array.dtype, array.shape, array.nbytes) for name, array in arrays],
            outputs,
            len(arrays[0][1]) if signature.max_batch_size else 1,
            sum(array.size for _, array in arrays),
        )

    def fits(self, places: Places) -> bool:
        """Tell whether the raw tensors of a request have the sizes that its form says."""
        if len(places) != len(self.inputs):
            return False
        for (start, stop), (_, _, _, nbytes) in zip(places, self.inputs, strict=True):
            if stop - start != nbytes:
                return False
        return True

    def feed(self, requests: Sequence[PlainRequest]) -> dict[str, Array]:
        """Return the inputs of requests that fit: of one alone as views where they are aligned."""
        feed: dict[str, Array] = {}
        for index, (name, dtype, shape, _) in enumerate(self.inputs):
            if len(requests) == 1:
                message, (start, _) = requests[0].message, requests[0].places[index]
                array: Array = np.ndarray(shape, dtype, message, start)
                feed[name] = array if array.flags.aligned else array.copy()
            else:
                parts = [each.message[slice(*each.places[index])] for each in requests]
                together = (shape[0] * len(requests), *shape[1:])
                feed[name] = np.ndarray(together, dtype, b"".join(parts))
        return feed

    def render(self, requests: Sequence[PlainRequest], values: Sequence[Array]) -> list[bytes]:
        """Serialize the `ModelInferResponse` to each of some requests that were run together.

        Raises:
            NotRowWiseError: An output does not have the rows of all of them.
        """
        count = len(requests)
        shapes = tuple(map(_shape, values))
        head = self._heads.get((count, shapes)) or self._head(count, shapes, values)
        raws = list(map(np.ndarray.tobytes, values))
        answers = []
        for index, request in enumerate(requests):
            parts = [head.before]
            if request.id:
                parts += (wire.prefix(_ANSWER_ID, len(request.id)), request.id)
            parts.append(head.after)
            for (before, size), raw in zip(head.tensors, raws, strict=True):
                parts += (before, raw[index * size : (index + 1) * size])
            answers.append(b"".join(parts))
        return answers

    def _head(
        self, count: int, shapes: tuple[tuple[int, ...], ...], values: Sequence[Array]
    ) -> _Head:
        own = list(shapes)
        if count > 1:
            if any(not shape or shape[0] != self.rows * count for shape in shapes):
                raise NotRowWiseError
            own = [(self.rows, *shape[1:]) for shape in shapes]
        datatypes = self.servable.signature.outputs
        before = pb.ModelInferResponse(
            model_name=self.model, model_version=str(self.servable.version)
        )
        after = pb.ModelInferResponse()
        for name, shape in zip(self.outputs, own, strict=True):
            after.outputs.add(name=name, datatype=datatypes[name].datatype.wire, shape=shape)
        sizes = [value.nbytes // count for value in values]
        head = _Head(
            before.SerializeToString(),
            after.SerializeToString(),
            [(wire.prefix(_ANSWER_RAW, size), size) for size in sizes],
        )
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[count, shapes] = head
        return head

"""Who may do what to which model, decided from the metadata of a call, whichever door it took."""

import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from servery_inference.request import InferRequest, Timing, shown
from servery_rpc.errors import PermissionDeniedError
from servery_rpc.identity import Caller, Verb, caller_of
from servery_rpc.names import DEFAULT_TENANT, ModelName

MODEL_HEADER: Final = "x-servery-model"
"""Metadata in which the gateway says for which model it let the call through."""

TIMING_HEADER: Final = "servery-timing"
"""`1` in the metadata of a call asks for the same key behind the answer: microseconds by stage."""

_FOREVER_S: Final = 1e6

VISIBLE: Final[tuple[Verb, ...]] = ("infer", "read")
"""Any of these lets a caller know that a model is there."""


class Context(Protocol):
    """What the methods of the service need of a call; that of gRPC has it."""

    def invocation_metadata(self) -> Any:
        """Return pairs of lower-case keys and values."""

    def set_trailing_metadata(self, trailing_metadata: Any, /) -> None:
        """Set the pairs to send behind the answer."""

    def time_remaining(self) -> float | None:
        """Return the seconds after which the caller stops waiting; None for never."""


class Timed(Protocol):
    """A call, as far as time goes."""

    def time_remaining(self) -> float | None:
        """Return the seconds after which the caller stops waiting; None for never."""


def deadline_of(call: Timed) -> float | None:
    """When the caller stops waiting, by `time.monotonic`; some clients say "never" in years."""
    left_s = call.time_remaining()
    return None if left_s is None or left_s > _FOREVER_S else time.monotonic() + left_s


def caller(context: Any) -> Caller:
    """Return who makes the call."""
    return caller_of(context)


def authorize(context: Context, verbs: Sequence[Verb], model: str) -> None:
    """Refuse unless the caller may do one of `verbs` to the model of this name on the wire.

    Raises:
        PermissionDeniedError: It may not, or the gateway let it through for another model.
    """
    metadata = context.invocation_metadata() or ()
    elsewhere = any(key == MODEL_HEADER and value != model for key, value in metadata)
    if elsewhere or not may(caller(context), verbs, model):
        raise PermissionDeniedError(verbs[0], str(_resource(shown(model))))


def authorize_infer(context: Context, request: InferRequest) -> None:
    """Refuse unless the caller may make an inference request.

    Memory of this machine belongs to whoever runs it: only they may name it.

    Raises:
        PermissionDeniedError: It may not.
    """
    authorize(context, ("infer",), request.model)
    if request.shares_memory:
        require_operator(context)


def require_operator(context: Context) -> None:
    """Refuse unless the caller may administer the server itself.

    Raises:
        PermissionDeniedError: It may not.
    """
    caller(context).require("admin", DEFAULT_TENANT)


def may(who: Caller, verbs: Sequence[Verb], model: str) -> bool:
    """Tell whether `who` may do one of `verbs` to the model of this name on the wire."""
    resource = _resource(model)
    return any(who.may(verb, resource.tenant, resource.model) for verb in verbs)


def asks(context: Context, key: str) -> bool:
    """Tell whether the metadata of the call switches `key` on."""
    metadata = context.invocation_metadata() or ()
    return any(k == key and value in ("1", "true") for k, value in metadata)


def timing_text(timing: Timing) -> str:
    """Render where the time of a request went, in microseconds."""
    parts = {
        "queue": timing.queue_ns,
        "compute_input": timing.compute_input_ns,
        "compute_infer": timing.compute_infer_ns,
        "compute_output": timing.compute_output_ns,
    }
    return ", ".join(f"{name};us={ns / 1000:.1f}" for name, ns in parts.items())


def _resource(model: str) -> ModelName:
    """What a name on the wire names: the opposite of `ModelName.wire_name`, for any text."""
    tenant, dot, name = model.partition(".")
    return ModelName(tenant, name) if dot else ModelName(DEFAULT_TENANT, model)

"""Failures a caller can act on, and the one place they become gRPC statuses.

Domain code raises `ServeryError` subclasses and never imports grpc. Anything else that escapes a
servicer is a bug: it is logged, and the caller sees INTERNAL.
"""

from typing import ClassVar, Final

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.errors.v1.error_reason_pb2 import ErrorReason

DOMAIN: Final = "servery"

CODES: Final = {
    reasons.ERROR_REASON_FIELD_INVALID: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_API_KEY_INVALID: code_pb2.UNAUTHENTICATED,
    reasons.ERROR_REASON_PERMISSION_DENIED: code_pb2.PERMISSION_DENIED,
    reasons.ERROR_REASON_OVERLOADED: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_UPLOAD_TOO_LARGE: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_DIGEST_MISMATCH: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_REQUEST_ID_REUSED: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_ETAG_MISMATCH: code_pb2.ABORTED,
    reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE: code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_MODEL_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_VERSION_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_ALIAS_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_FILE_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_GRAPH_REFUSED: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_BUNDLE_INVALID: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_DATASET_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_DATASET_INVALID: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_TRAINING_JOB_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_TRAINING_JOB_ENDED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_PARITY_FAILED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_TRAINING_JOB_CRASHED: code_pb2.INTERNAL,
    reasons.ERROR_REASON_TRAINING_DEADLINE: code_pb2.DEADLINE_EXCEEDED,
    reasons.ERROR_REASON_STUDY_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_STUDY_ENDED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_STUDY_FAILED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_UPLOAD_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_UPLOAD_MOVED: code_pb2.ABORTED,
    reasons.ERROR_REASON_UPLOAD_STALLED: code_pb2.ABORTED,
    reasons.ERROR_REASON_UPLOAD_LIMIT: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_STORAGE_FULL: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_TRAINING_STORAGE_FULL: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_CUSTOM_CODE_FORBIDDEN: code_pb2.PERMISSION_DENIED,
    reasons.ERROR_REASON_CUSTOM_CODE_FAILED: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_TENANT_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_TENANT_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_API_KEY_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_CONFIGURATION_REJECTED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_QUOTA_EXCEEDED: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_IDENTITY_UNKNOWN: code_pb2.UNAUTHENTICATED,
    reasons.ERROR_REASON_IDENTITY_REVOKED: code_pb2.UNAUTHENTICATED,
    reasons.ERROR_REASON_MODEL_NOT_SERVED: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_INFERENCE_REQUEST_INVALID: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_UNSUPPORTED: code_pb2.UNIMPLEMENTED,
    reasons.ERROR_REASON_MODEL_LOAD_FAILED: code_pb2.INTERNAL,
    reasons.ERROR_REASON_MODEL_CONTROL_DISABLED: code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_EXPLANATION_UNAVAILABLE: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_QUEUE_FULL: code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_QUEUE_TIMEOUT: code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_DEADLINE_UNREACHABLE: code_pb2.DEADLINE_EXCEEDED,
    reasons.ERROR_REASON_REGION_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_REGION_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_REGION_INVALID: code_pb2.INTERNAL,
}
"""The status code of every reason, as error_reason.proto promises."""


class ServeryError(Exception):
    """A failure whose `reason` the caller can branch on.

    Subclasses fix `reason` and pass the metadata error_reason.proto promises. The message reaches
    the caller: it names what is wrong and the way out, and holds no path and no secret.
    """

    reason: ClassVar["ErrorReason.ValueType"]

    retry_after_ms: int | None = None
    """When it is worth to try again; None if nothing is known about that."""

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class FieldInvalidError(ServeryError):
    """A request field is malformed.

    Args:
        field: Path of the field, such as `training_job.spec.dataset`.
        value: What it held.
        rule: What it must do instead, to follow "it must".
    """

    reason = reasons.ERROR_REASON_FIELD_INVALID

    def __init__(self, field: str, value: object, rule: str) -> None:
        shown = str(value)[:100]
        super().__init__(
            f"{field} is {shown!r}; it must {rule}", field=field, value=shown, rule=rule
        )


class PermissionDeniedError(ServeryError):
    """The caller may not do `verb` to `resource`."""

    reason = reasons.ERROR_REASON_PERMISSION_DENIED

    def __init__(self, verb: str, resource: str) -> None:
        super().__init__(
            f"this key lacks the permission {verb!r} for {resource}; ask an administrator of the"
            " tenant for a key that has it",
            verb=verb,
            resource=resource,
        )


class QuotaExceededError(ServeryError):
    """A quota is used up.

    Args:
        limit: Which part of it, as error_reason.proto lists them.
        retry_after_ms: When it is worth to try again.
        what: What is used up, and the way out.
    """

    reason = reasons.ERROR_REASON_QUOTA_EXCEEDED

    def __init__(self, limit: str, retry_after_ms: int, what: str) -> None:
        super().__init__(what, limit=limit)
        self.retry_after_ms = retry_after_ms


class DigestMismatchError(ServeryError):
    """Bytes are not the ones that were declared."""

    reason = reasons.ERROR_REASON_DIGEST_MISMATCH

    def __init__(self, file: str, declared: str, computed: str) -> None:
        super().__init__(
            f"{file} was declared with SHA-256 {declared} but its bytes have {computed};"
            " nothing was stored, upload it again",
            file=file,
            declared=declared,
            computed=computed,
        )


class UploadTooLargeError(ServeryError):
    """More bytes arrive than the server takes."""

    reason = reasons.ERROR_REASON_UPLOAD_TOO_LARGE

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the upload is larger than the {limit_bytes} bytes this server takes",
            limit_bytes=str(limit_bytes),
        )


class RequestIdReusedError(ServeryError):
    """One request_id came with two different requests."""

    reason = reasons.ERROR_REASON_REQUEST_ID_REUSED

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was used before with another request; use a new UUID",
            request_id=request_id,
        )


class UnsupportedError(ServeryError):
    """This server does not offer the operation."""

    reason = reasons.ERROR_REASON_UNSUPPORTED

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation} is not supported by this server", operation=operation)


class DependencyUnavailableError(ServeryError):
    """A process this one depends on does not answer."""

    reason = reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE

    def __init__(self, service: str) -> None:
        super().__init__(f"the {service} does not answer now; try again", service=service)


def to_status(error: ServeryError) -> Status:
    """Render `error` as the status its caller receives."""
    status = Status(code=CODES[error.reason], message=str(error))
    _attach(
        status,
        ErrorInfo(reason=ErrorReason.Name(error.reason), domain=DOMAIN, metadata=error.metadata),
    )
    if isinstance(error, FieldInvalidError):
        violation = BadRequest.FieldViolation(
            field=error.metadata["field"], description=f"must {error.metadata['rule']}"
        )
        _attach(status, BadRequest(field_violations=[violation]))
    if isinstance(error, QuotaExceededError):
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms or 0)
        _attach(status, RetryInfo(retry_delay=delay))
        quota = QuotaFailure.Violation(subject=error.metadata["limit"], description=str(error))
        _attach(status, QuotaFailure(violations=[quota]))
    return status


def _attach(status: Status, detail: Message) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)

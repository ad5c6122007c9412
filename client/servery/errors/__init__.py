"""What a failed call says, for programs that branch on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status


@dataclass(eq=False)
class ApiError(Exception):
    """A call that a server refused or could not finish."""

    code: grpc.StatusCode
    """The gRPC status."""

    reason: str
    """Name of a value of `servery.errors.v1.ErrorReason`; empty if the server named none."""

    message: str
    """For people."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """What error_reason.proto promises for `reason`."""

    @classmethod
    def of(cls, error: grpc.RpcError) -> Self:
        """Read the status of a failed call, synchronous or asyncio."""
        call: Any = error  # Both kinds of call error have these methods; their common base has not.
        code: grpc.StatusCode = call.code()
        details: str = call.details() or ""
        for key, value in call.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in Status.FromString(value).details:
                    info = ErrorInfo()
                    if detail.Unpack(info):
                        return cls(code, info.reason, details, dict(info.metadata))
        return cls(code, "", details)

    def __str__(self) -> str:
        return self.message or self.code.name

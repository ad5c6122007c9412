"""The audit log: every administrative act, who did it, and how it ended.

Append-only lines of JSON, on disk before the caller gets its answer. It holds no secret: of a
request and its answer only what they are about.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery_rpc.errors import ServeryError
from servery_rpc.identity import caller_of
from servery_rpc.interceptor import request_id

S = TypeVar("S")

ACTS: Final = (
    *("CreateTenant", "CreateApiKey", "RevokeApiKey", "SetQuota", "SetRoute"),
    *("SetPrices", "SetBudget", "RevokeIdentity", "RestoreIdentity"),
)
"""Every method that changes what the gateway keeps."""

_NAMES: Final = ("name", "parent")
_SUBJECTS: Final = ("tenant", "api_key", "quota", "route", "prices", "budget")
"""Fields of requests and answers that tell what an act is about: texts, and messages. What else
there is, such as the secret of a new key, is not written."""


class AuditLog:
    """A file of acts. Safe to use from many threads; methods block.

    Args:
        path: Made for this user alone if it is missing.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._writing = threading.Lock()

    def add(self, act: Mapping[str, Any]) -> None:
        """Write an act; return when it is on disk.

        Raises:
            OSError: It cannot be written.
        """
        line = json.dumps(act, ensure_ascii=False).encode() + b"\n"
        with self._writing:
            os.write(self._file, line)
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def audited(servicer: S, log: AuditLog, now: Callable[[], datetime]) -> S:
    """Return `servicer`, whose acts are written to `log` from now on, refused ones included."""
    for name in ACTS:
        method = getattr(servicer, name, None)
        if method is not None:
            setattr(servicer, name, _audited(name, method, log, now))
    return servicer


def _audited(
    name: str, method: Callable[..., Awaitable[Any]], log: AuditLog, now: Callable[[], datetime]
) -> Callable[..., Awaitable[Any]]:
    async def act(request: Any, context: Any) -> Any:
        time, response, outcome = now(), None, "INTERNAL"
        try:
            response = await method(request, context)
            outcome = "OK"
        except ServeryError as error:
            outcome = ErrorReason.Name(error.reason)
            raise
        finally:
            entry = {
                "time": time.isoformat(timespec="milliseconds"),
                "act": name,
                "by": caller_of(context).key or "platform",
                "request": _subjects(request),
                "response": _subjects(response),
                "outcome": outcome,
                "request_id": request_id.get(),
            }
            await asyncio.to_thread(log.add, entry)
        return response

    return act


def _subjects(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _NAMES:
        text = getattr(message, name, None)
        if isinstance(text, str) and text:
            found[name] = text
    for name in _SUBJECTS:
        value = getattr(message, name, None)
        if isinstance(value, Message):
            found[name] = _readable(value)
    return found


def _readable(message: Message) -> Any:
    try:
        return MessageToDict(message, preserving_proto_field_name=True)
    except SerializeToJsonError:  # JSON has no words for some of what a caller may send.
        return MessageToString(message, as_one_line=True)

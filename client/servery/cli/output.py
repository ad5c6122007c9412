"""What a command prints: a table for people or one JSON document for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from servery.errors import ApiError

_PIPE_WIDTH: Final = 400  # Nothing is cut or wrapped for a program that reads the output.
out: Final = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

EXIT_CODES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 2,
    grpc.StatusCode.NOT_FOUND: 3,
    grpc.StatusCode.UNAUTHENTICATED: 4,
    grpc.StatusCode.PERMISSION_DENIED: 4,
    grpc.StatusCode.ABORTED: 5,
    grpc.StatusCode.ALREADY_EXISTS: 5,
    grpc.StatusCode.FAILED_PRECONDITION: 5,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 6,
    grpc.StatusCode.UNAVAILABLE: 7,
    grpc.StatusCode.DEADLINE_EXCEEDED: 7,
}
"""Exit status of a command by the status of the call that failed; 1 for any other."""


class Format(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=_plain) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under column heads, all as they are; the first column, the name, is never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(column), no_wrap=column is columns[0])
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it, under the names of the proto."""
    return MessageToDict(message, preserving_proto_field_name=True)


def when(time: Timestamp) -> str:
    """Return a time as people read it, in UTC."""
    return time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


def short(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rpartition("/")[2]


def fail(error: ApiError) -> int:
    """Print why a call failed on standard error; return the exit status that says so."""
    reason = error.reason.removeprefix("ERROR_REASON_") or error.code.name
    err.print(f"[red]error[/red] {reason}: ", end="")
    err.print(str(error), markup=False)
    if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
        err.print("is the server running there (--address), and does it want TLS (--ca)?")
    return EXIT_CODES.get(error.code, 1)


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return as_dict(value)
    return value.tolist()  # NumPy arrays and scalars.

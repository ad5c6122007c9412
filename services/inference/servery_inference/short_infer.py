"""`ModelInfer` by the short way, on either transport: asked before the ordinary handler.

Neither builds what handlers of other methods are given; on `servery_h2` there is not even a task.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import time
from typing import Final

import grpc

import servery_h2
from servery_h2 import RawOutcome, Stream, hand_over
from servery_inference.access import deadline_of
from servery_inference.express import Express, Way
from servery_inference.forms import Reply
from servery_inference.rpcs import SERVICE
from servery_rpc.call_metrics import calls_of
from servery_rpc.guarded_server import First, GuardedServer
from servery_rpc.interceptor import Context

PATH: Final = f"/{SERVICE}/ModelInfer"
_OK: Final = grpc.StatusCode.OK.name


def register_short(express: Express, server: grpc.aio.Server) -> None:
    """Let `express` answer what it can of the calls to `server`, before the handlers are added."""
    if isinstance(server, servery_h2.Server):
        server.add_raw_unary_handler(PATH, raw_handler(express))
    elif isinstance(server, GuardedServer):
        server.add_first(PATH, first_handler(express))


def raw_handler(express: Express) -> servery_h2.RawHandler:
    """Return the handler for `servery_h2`."""
    calls = calls_of(PATH)

    def infer(message: bytes, stream: Stream) -> RawOutcome:
        start = time.perf_counter()

        def deliver(reply: Reply | None) -> None:
            if reply is None:
                hand_over(stream, message)
            else:
                stream.reply(*reply)
                calls.end(_OK, start)

        deadline = None if stream.deadline is None else deadline_of(stream)
        found = express.answer(message, stream.head.metadata, deadline, deliver)
        if found is Way.GENERAL:
            return RawOutcome.ORDINARY
        if found is not Way.LATER:
            stream.reply(*found)
            calls.end(_OK, start)
        return RawOutcome.LATER

    return infer


def first_handler(express: Express) -> First:
    """Return the handler for grpcio."""
    calls = calls_of(PATH)

    async def infer(message: bytes, context: Context) -> bytes | None:
        start = time.perf_counter()
        later: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

        def deliver(reply: Reply | None) -> None:
            if not later.done():  # Else the caller left.
                later.set_result(reply)

        metadata = context.invocation_metadata() or ()
        found = express.answer(message, metadata, deadline_of(context), deliver)
        if found is Way.GENERAL:
            return None
        reply = await later if found is Way.LATER else found
        if reply is None:
            return None
        answer, trailing = reply
        if trailing:
            context.set_trailing_metadata(trailing)
        calls.end(_OK, start)
        return answer

    return infer

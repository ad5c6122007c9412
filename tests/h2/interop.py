"""The service of the gRPC interoperability tests, its messages built here; also a program.

`python -m tests.h2.interop --port P [--certificate C --key K]` serves it on servery_h2.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from servery_h2 import Limits, Server, TlsFiles

SERVICE = "grpc.testing.TestService"
_INITIAL = "x-grpc-test-echo-initial"
_TRAILING = "x-grpc-test-echo-trailing-bin"

# Message: its fields as (number, name, type or message, repeated).
_MESSAGES = {
    "Empty": (),
    "BoolValue": ((1, "value", "bool"),),
    "Payload": ((1, "type", "int32"), (2, "body", "bytes")),
    "EchoStatus": ((1, "code", "int32"), (2, "message", "string")),
    "SimpleRequest": (
        (1, "response_type", "int32"),
        (2, "response_size", "int32"),
        (3, "payload", "Payload"),
        (6, "response_compressed", "BoolValue"),
        (7, "response_status", "EchoStatus"),
        (8, "expect_compressed", "BoolValue"),
    ),
    "SimpleResponse": ((1, "payload", "Payload"), (2, "username", "string")),
    "StreamingInputCallRequest": ((1, "payload", "Payload"), (2, "expect_compressed", "BoolValue")),
    "StreamingInputCallResponse": ((1, "aggregated_payload_size", "int32"),),
    "ResponseParameters": (
        (1, "size", "int32"),
        (2, "interval_us", "int32"),
        (3, "compressed", "BoolValue"),
    ),
    "StreamingOutputCallRequest": (
        (1, "response_type", "int32"),
        (2, "response_parameters", "*ResponseParameters"),
        (3, "payload", "Payload"),
        (7, "response_status", "EchoStatus"),
    ),
    "StreamingOutputCallResponse": ((1, "payload", "Payload"),),
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="interop.proto", package="grpc.testing", syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            added = message.field.add(name=field, number=number, label=kinds.LABEL_OPTIONAL)
            if kind.startswith("*"):
                kind, added.label = kind[1:], kinds.LABEL_REPEATED
            if kind in _MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".grpc.testing.{kind}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.testing.{name}"))
        for name in _MESSAGES
    }


MESSAGES = _classes()
Empty = MESSAGES["Empty"]
Payload = MESSAGES["Payload"]
SimpleRequest = MESSAGES["SimpleRequest"]
SimpleResponse = MESSAGES["SimpleResponse"]
StreamingInputCallRequest = MESSAGES["StreamingInputCallRequest"]
StreamingInputCallResponse = MESSAGES["StreamingInputCallResponse"]
StreamingOutputCallRequest = MESSAGES["StreamingOutputCallRequest"]
StreamingOutputCallResponse = MESSAGES["StreamingOutputCallResponse"]


class InteropServicer:
    """Does what the interoperability tests ask of a server."""

    async def EmptyCall(self, request: Any, context: Any) -> Any:
        await _echo_metadata(context)
        return Empty()

    async def UnaryCall(self, request: Any, context: Any) -> Any:
        if request.response_compressed.value:
            context.set_compression(grpc.Compression.Gzip)
        await _echo_metadata(context)
        await _echo_status(request, context)
        return SimpleResponse(payload=_payload(request.response_size))

    async def StreamingOutputCall(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in _responses(request, context):
            yield response

    async def StreamingInputCall(self, requests: AsyncIterator[Any], context: Any) -> Any:
        size = 0
        async for request in requests:
            size += len(request.payload.body)
        return StreamingInputCallResponse(aggregated_payload_size=size)

    async def FullDuplexCall(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        await _echo_metadata(context)
        async for request in requests:
            async for response in _responses(request, context):
                yield response

    async def HalfDuplexCall(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        for request in [request async for request in requests]:
            async for response in _responses(request, context):
                yield response


async def _responses(request: Any, context: Any) -> AsyncIterator[Any]:
    for parameters in request.response_parameters:
        if parameters.interval_us:
            await asyncio.sleep(parameters.interval_us / 1e6)
        yield StreamingOutputCallResponse(payload=_payload(parameters.size))
    await _echo_status(request, context)


async def _echo_status(request: Any, context: Any) -> None:
    status = request.response_status
    if status.code:
        codes = {code.value[0]: code for code in grpc.StatusCode}
        await context.abort(codes[status.code], status.message)


async def _echo_metadata(context: Any) -> None:
    metadata = dict(context.invocation_metadata())
    if _TRAILING in metadata:
        context.set_trailing_metadata(((_TRAILING, metadata[_TRAILING]),))
    if _INITIAL in metadata:
        await context.send_initial_metadata(((_INITIAL, metadata[_INITIAL]),))


def _payload(size: int) -> Any:
    return Payload(body=bytes(size))


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def handlers() -> grpc.GenericRpcHandler:
    """Return the handlers of the service, for any server that takes grpc's."""
    servicer = InteropServicer()
    unary, out, into, both = (
        grpc.unary_unary_rpc_method_handler,
        grpc.unary_stream_rpc_method_handler,
        grpc.stream_unary_rpc_method_handler,
        grpc.stream_stream_rpc_method_handler,
    )
    output = StreamingOutputCallRequest.FromString
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "EmptyCall": unary(servicer.EmptyCall, Empty.FromString, _serialize),
            "UnaryCall": unary(servicer.UnaryCall, SimpleRequest.FromString, _serialize),
            "StreamingOutputCall": out(servicer.StreamingOutputCall, output, _serialize),
            "StreamingInputCall": into(
                servicer.StreamingInputCall, StreamingInputCallRequest.FromString, _serialize
            ),
            "FullDuplexCall": both(servicer.FullDuplexCall, output, _serialize),
            "HalfDuplexCall": both(servicer.HalfDuplexCall, output, _serialize),
        },
    )


async def _serve(port: int, tls: TlsFiles | None) -> None:
    server = Server(limits=Limits(max_receive_message_bytes=32 << 20))
    server.add_generic_rpc_handlers([handlers()])
    server.add_raw_unary_handler("/echo.Echo/Raw", lambda message, _: message)
    address = f"127.0.0.1:{port}"
    bound = server.add_tls_port(address, tls) if tls else server.add_insecure_port(address)
    await server.start()
    print(bound, flush=True)  # noqa: T201 (how the parent learns it)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--uvloop", action="store_true")
    args = parser.parse_args()
    files = TlsFiles(args.certificate, args.key) if args.key else None
    if args.uvloop:
        import uvloop

        uvloop.run(_serve(args.port, files))
    else:
        asyncio.run(_serve(args.port, files))

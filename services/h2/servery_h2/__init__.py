"""A gRPC server that speaks HTTP/2 itself, on asyncio, for handlers written for grpc.aio."""

from servery_h2.calls import hand_over
from servery_h2.faults import StatusError
from servery_h2.limits import Limits
from servery_h2.methods import RawHandler, RawOutcome
from servery_h2.server import Server
from servery_h2.stream import Stream
from servery_h2.tls import TlsFiles

__all__ = [
    "Limits",
    "RawHandler",
    "RawOutcome",
    "Server",
    "StatusError",
    "Stream",
    "TlsFiles",
    "hand_over",
]

"""What carries the calls of the inference process: grpcio, or Servery's own HTTP/2 server."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc

from servery_rpc.interceptor import ServeryInterceptor
from servery_rpc.server import GrpcioTransport, Transport
from servery_rpc.settings import ServerSettings

if TYPE_CHECKING:
    from servery_h2 import TlsFiles

_INT32_MAX: Final = (1 << 31) - 1
_WINDOW_BYTES: Final = 64 << 20


class FastTransport:
    """Calls over `servery_h2`."""

    def open(self, settings: ServerSettings, interceptor: ServeryInterceptor) -> grpc.aio.Server:
        """See `Transport`."""
        import servery_h2  # Only here, for the 3 MB that it takes.

        limit = _INT32_MAX if settings.max_message_bytes < 0 else settings.max_message_bytes
        limits = servery_h2.Limits(
            max_receive_message_bytes=limit,
            max_send_message_bytes=limit,
            stream_window_bytes=_WINDOW_BYTES,
            connection_window_bytes=4 * _WINDOW_BYTES,
            max_buffered_bytes=16 * _WINDOW_BYTES,
            max_concurrent_streams=1024,
        )
        return servery_h2.Server(limits=limits, interceptors=[interceptor])

    def bind(self, server: Any, settings: ServerSettings) -> int:
        """See `Transport`."""
        files = tls_files(settings)
        if files is not None:
            port: int = server.add_tls_port(settings.listen, files)
        else:
            port = server.add_insecure_port(settings.listen)
        return port


def tls_files(settings: ServerSettings) -> "TlsFiles | None":
    """Return the files with which `servery_h2` does TLS; None to do without."""
    if not (settings.tls_certificate and settings.tls_key):
        return None
    from servery_h2 import TlsFiles

    return TlsFiles(settings.tls_certificate, settings.tls_key)


TRANSPORTS: Final[Mapping[str, Callable[[], Transport]]] = {
    "grpcio": GrpcioTransport,
    "fast": FastTransport,
}
"""What `--transport` can name."""

"""The life of one process: settings, logs, metrics, a loop, and a stop on SIGTERM."""

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from servery_rpc.interceptor import request_id, trace_id
from servery_rpc.settings import ServerSettings, load

S = TypeVar("S", bound=ServerSettings)
log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: when, how bad, who, what, for which request."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            entry["request_id"] = current
        if trace := trace_id.get():
            entry["trace_id"] = trace
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def log_to_stderr(level: str) -> None:
    """Send every log record of the process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def run_process(
    settings_class: type[S],
    prefix: str,
    run: Callable[[S], Coroutine[Any, Any, None]],
    argv: Sequence[str] | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> int:
    """Be the `main` of a server process; return its exit status.

    The only place that reads the process environment. A failure to start (a port in use, a
    directory that cannot be written) is one clear line and exit status 1.

    Args:
        settings_class: Its settings.
        prefix: Of its environment variables, such as `SERVERY_REGISTRY`.
        run: Serves until `stop_requested` returns.
        argv: Its arguments; None means those of this process.
        loop_factory: Makes its event loop; None means asyncio's own.
        registry: The metrics that it exports.
    """
    stop_with_parent()
    settings = load(settings_class, prefix, argv, os.environ)
    log_to_stderr(settings.log_level)
    try:
        if settings.metrics_port is not None:
            server, _ = start_http_server(settings.metrics_port, "127.0.0.1", registry)
            log.info("metrics on http://127.0.0.1:%s/metrics", server.server_port)
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run(settings))
    except (OSError, RuntimeError) as error:
        log.critical("cannot run: %s", error, exc_info=log.isEnabledFor(logging.DEBUG))
        return 1
    return 0


async def stop_requested() -> None:
    """Return when the process is asked to stop (SIGINT or SIGTERM)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    await stop.wait()


def stop_with_parent(*, unasked: bool = False) -> None:
    """Get SIGTERM when the parent process dies, if it asked for that.

    `servery up` sets the variable, so that nothing it started outlives it, not even a kill -9.
    Lasts over `exec`. Linux only; elsewhere it does nothing.

    Args:
        unasked: Get it whether the parent asked for it or not.
    """
    if (unasked or os.environ.get("SERVERY_STOP_WITH_PARENT")) and sys.platform == "linux":
        pr_set_pdeathsig = 1  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)

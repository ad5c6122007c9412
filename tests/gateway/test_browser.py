"""A page in a real browser calls inference over gRPC-Web, from another origin."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from servery.inference.v1 import grpc_service_pb2 as oip
from servery.trainer.v1 import training_pb2
from servery_gateway.control_plane import control_plane

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder

PAGE = Path(__file__).with_name("grpc_web.html")
INFER = "/inference.GRPCInferenceService/ModelInfer"
WATCH = "/servery.trainer.v1.TrainingService/WatchTrainingJob"


@dataclass
class Site:
    """Serves the page, tells it what to call, and takes in what came of it."""

    origin: str
    plan: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Any] = ()
    done: threading.Event = field(default_factory=threading.Event)


@contextmanager
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_page = self.path == "/"
            self._answer(PAGE.read_bytes() if is_page else json.dumps(served.plan).encode())

        def do_POST(self) -> None:
            served.results = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._answer(b"")
            served.done.set()

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html" if self.path == "/" else "text/plain")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def visit(url: str, done: threading.Event, profile: Path) -> None:
    """Open a page in a browser that nobody sees, until it is `done`."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium to open a page with")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    running = subprocess.Popen(
        [browser, *flags, f"--user-data-dir={profile}", "--no-first-run", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert done.wait(60), "the page did not finish"
    finally:
        running.terminate()
        running.wait(15)


@pytest.mark.slow
async def test_a_page_of_another_origin_infers_watches_and_reads_refusals(
    build: Builder, own_directory: Path, tmp_path: Path
) -> None:
    with site() as served:
        settings = build.settings_for(own_directory, browser_origins=(served.origin,))
        async with (
            control_plane(settings),
            build.running_stack(settings, own_directory) as stack,
        ):
            token = await stack.token(infer=["digits"], read=["*"])
            served.plan = {
                "gateway": f"http://{settings.public_listen}",
                "calls": [
                    {"path": path, "message": list(message.SerializeToString()), "token": token}
                    for path, message in (
                        (INFER, oip.ModelInferRequest(model_name="digits")),
                        (WATCH, training_pb2.WatchTrainingJobRequest()),
                        (INFER, oip.ModelInferRequest(model_name="cats")),
                    )
                ],
            }
            await asyncio.to_thread(visit, served.origin, served.done, tmp_path)
            inferred, watched, refused = served.results
            assert (inferred["status"], inferred["messages"]) == (0, [[]])
            assert (watched["status"], watched["messages"]) == (0, [[]])
            assert refused["status"] == 7
            status = Status.FromString(base64.b64decode(refused["details"] + "=="))
            info = ErrorInfo()
            assert status.details[0].Unpack(info)
            assert info.reason == "ERROR_REASON_PERMISSION_DENIED"


@pytest.mark.slow
async def test_a_page_of_an_origin_that_is_not_named_gets_nothing(
    build: Builder, own_directory: Path, tmp_path: Path
) -> None:
    with site() as served:
        settings = build.settings_for(own_directory, browser_origins=("https://app.example.org",))
        async with (
            control_plane(settings),
            build.running_stack(settings, own_directory) as stack,
        ):
            request = oip.ModelInferRequest(model_name="digits").SerializeToString()
            token = await stack.token(infer=["digits"])
            served.plan = {
                "gateway": f"http://{settings.public_listen}",
                "calls": [{"path": INFER, "message": list(request), "token": token}],
            }
            await asyncio.to_thread(visit, served.origin, served.done, tmp_path)
            assert "error" in served.results[0]
            assert INFER not in stack.backends["inference"].metadata

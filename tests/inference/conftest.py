"""An inference server on a directory, behind a real channel."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference import graphs

TRANSPORT = os.environ.get("SERVERY_TEST_TRANSPORT", "fast")
"""`make test` runs the suite once over each transport."""

WORKERS = int(os.environ.get("SERVERY_TEST_WORKERS", "1"))
"""The suite can be run over several worker processes; see CONTRIBUTING.md."""

Serve = Callable[[Path], AbstractAsyncContextManager[grpc.aio.Channel]]


@asynccontextmanager
async def serve_directory(
    root: Path, options: Sequence[tuple[str, Any]] = (), **flags: Any
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve a directory of models; give a channel once it is ready."""
    # Admission has tests of its own; its process would take most of the time of all others.
    defaults: dict[str, Any] = {
        "drain_s": 0,
        "admission_wall_s": 0,
        "transport": TRANSPORT,
        "workers": WORKERS,
    }
    settings = InferenceSettings(model_repository=root, **(defaults | flags))
    async with (
        serving_inference(settings) as server,
        grpc.aio.insecure_channel(
            server.address, options=[("grpc.max_receive_message_length", -1), *options]
        ) as channel,
    ):
        await asyncio.wait_for(server.ready.wait(), 20)
        yield channel


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with one model of each kind that the tests of the wire need."""
    for datatype in graphs.ONNX_TYPES:
        if datatype not in ("BF16", "FP8"):
            graphs.store(tmp_path, f"identity_{datatype.lower()}", graphs.identity(datatype))
    graphs.store(tmp_path, "simple", graphs.add_and_subtract())
    graphs.store(tmp_path, "dense", graphs.dense())
    graphs.store(tmp_path, "pick", graphs.pick())
    graphs.store(tmp_path, "fixed", graphs.identity("FP32", (2, 3)))
    graphs.store(tmp_path, "free", graphs.identity("FP32", ("batch", "width")))
    return tmp_path


@pytest.fixture
async def channel(root: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with serve_directory(root) as channel:
        yield channel

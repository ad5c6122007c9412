"""An inference server with models of every kind, and a client of its HTTP door."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference import graphs
from tests.inference.calling import DTYPES
from tests.inference.conftest import WORKERS

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> str:
        return str(self.json()["error"])


@dataclass(frozen=True)
class Client:
    address: str

    async def __call__(
        self, method: str, path: str, body: Any = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await asyncio.to_thread(self._call, method, path, data, headers or {})

    async def get(self, path: str) -> Any:
        answer = await self("GET", path)
        assert answer.status == 200, answer.body
        return answer.json() if answer.body else None

    async def post(self, path: str, body: Any = b"") -> Any:
        answer = await self("POST", path, body)
        assert answer.status == 200, answer.body
        return answer.json() if answer.body else None

    def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            sent = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, sent, response.read())
        finally:
            connection.close()


@contextlib.asynccontextmanager
async def serving_http(root: Path) -> AsyncIterator[Client]:
    """Serve models of every datatype from `root`; give what asks the HTTP door."""
    for datatype in (*DTYPES, "BYTES"):
        graphs.store(root, f"identity_{datatype.lower()}", graphs.identity(datatype))
    graphs.store(root, "simple", graphs.add_and_subtract())
    graphs.store(root, "dense", graphs.dense())
    graphs.store(root, "text", graphs.identity("BYTES", ("batch", 1)))
    graphs.store(root, "free", graphs.identity("FP32", ("batch", 2, "width")))
    graphs.store(root, "freer", graphs.identity("FP32", ("batch", "height", "width")))
    graphs.store(root, "fixed", graphs.identity("FP32", (2, 3)))
    settings = InferenceSettings(
        model_repository=root,
        drain_s=0,
        http_port=0,
        model_control_mode="explicit",
        load_model=("*",),
        shared_memory=True,
        max_message_bytes=1 << 20,
        workers=WORKERS,
    )
    async with serving_inference(settings) as server:
        await asyncio.wait_for(server.ready.wait(), 20)
        assert server.http_address is not None
        yield Client(server.http_address)


def tensor(name: str, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


SIMPLE = {
    "id": "7",
    "inputs": [
        tensor("a", "INT32", [1, 16], data=list(range(16))),
        tensor("b", "INT32", [1, 16], data=[[1] * 16]),
    ],
}
INFER = "/v2/models/simple/infer"

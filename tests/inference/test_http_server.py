"""Where HTTP listens, and how it stops."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from servery_inference.http_server import serving_http
from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference import graphs


async def test_it_listens_on_a_unix_socket_of_this_user(tmp_path: Path) -> None:
    graphs.store(tmp_path / "models", "simple", graphs.add_and_subtract())
    path = tmp_path / "http.sock"
    settings = InferenceSettings(
        model_repository=tmp_path / "models", drain_s=0, http_listen=f"unix:{path}"
    )
    async with serving_inference(settings) as server:
        assert server.http_address == f"unix:{path}"
        assert (await asyncio.to_thread(path.stat)).st_mode & 0o777 == 0o600
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "flags",
    [
        {"http_port": -1},
        {"http_port": 1, "http_listen": "unix:/x"},
        {"http_listen": "0.0.0.0:80"},
    ],
)
def test_bad_places_to_listen_are_named(tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="http_"):
        InferenceSettings(model_repository=tmp_path, **flags)


async def test_a_port_in_use_is_an_error_that_says_so() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        """Never called."""

    async with serving_http(app, "127.0.0.1:0", 0) as address:
        with pytest.raises(RuntimeError, match=address):
            async with serving_http(app, address, 0):
                pass


async def test_requests_inside_may_finish_before_it_stops(tmp_path: Path) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        inside.set()
        await leave.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    path = tmp_path / "h.sock"
    async with serving_http(app, f"unix:{path}", 10):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.wait_for(inside.wait(), 10)
        asyncio.get_running_loop().call_later(0.05, leave.set)
    assert b"done" in await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert not await asyncio.to_thread(path.exists)

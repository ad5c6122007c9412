"""What is done beside the service has ended when what it uses is closed."""

import asyncio
import threading

from servery_gateway.background import background, in_thread


async def test_a_thread_has_ended_when_the_block_is_left() -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        began.set()
        may_end.wait(10)
        ended.set()

    async with background(in_thread(write)):
        await asyncio.to_thread(began.wait, 10)
        asyncio.get_running_loop().call_later(0.05, may_end.set)
    assert ended.is_set()

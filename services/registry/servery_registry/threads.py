"""Blocking work in threads, for callers that clean up after it."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def run_to_end(function: Callable[..., T], *args: Any) -> T:
    """Call a blocking function in a thread; when cancelled, let it end first, then give way.

    A thread cannot be stopped. `asyncio.to_thread` leaves it running behind the back of a cancelled
    task, which may then clean up what the thread is about to make.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # Looked at, so that asyncio does not complain; nobody waits for it.
        raise

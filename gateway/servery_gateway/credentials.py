"""Keeps what the platform shows, trusts and signs with fresh."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from servery_gateway.background import in_thread
from servery_gateway.operator_files import OperatorFiles
from servery_gateway.signing_keys import SigningKeys
from servery_rpc.errors import ServeryError

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0


async def renew_credentials(
    keys: SigningKeys,
    files: OperatorFiles,
    refresh: Callable[[], Awaitable[None]],
    now: Callable[[], datetime],
) -> None:
    """Renew keys in time and the rest when its files change, until cancelled.

    Args:
        keys: What tokens are signed with.
        files: What clients are shown, and whom the operator knows.
        refresh: Returns once the data plane works by `keys` and `files`.
        now: Returns the time.
    """
    due = False
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            due |= await in_thread(keys.renew, now())
        except OSError as error:
            log.error("signing keys cannot be renewed: %s", error)
        due |= await asyncio.to_thread(files.reload)
        if not due:
            continue
        try:
            await refresh()
        except ServeryError as error:
            log.error("new credentials are not in force: %s", error)
        else:
            keys.published()
            due = False
            log.info("new credentials are in force")

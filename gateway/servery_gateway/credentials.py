"""Keeps what the platform shows and signs with fresh: certificate and signing keys."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from servery_gateway.certificate import CertificateFiles
from servery_gateway.signing_keys import SigningKeys
from servery_rpc.errors import ServeryError

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0


async def renew_credentials(
    keys: SigningKeys,
    certificate: CertificateFiles | None,
    refresh: Callable[[], Awaitable[None]],
    now: Callable[[], datetime],
) -> None:
    """Renew keys in time and the certificate when its files change, until cancelled.

    Args:
        keys: What tokens are signed with.
        certificate: What clients are shown; None: nothing.
        refresh: Returns once the data plane works by `keys` and `certificate`.
        now: Returns the time.
    """
    due = False
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            due |= await asyncio.to_thread(keys.renew, now())
        except OSError as error:
            log.error("signing keys cannot be renewed: %s", error)
        if certificate is not None:
            due |= await asyncio.to_thread(certificate.reload)
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

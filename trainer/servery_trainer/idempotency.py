"""Requests that were answered before, so that repeating one is harmless."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import RequestIdReusedError
from servery_trainer.database import CREATE_REQUEST
from servery_trainer.progress import first_state

REQUEST_TTL: Final = timedelta(hours=24)
"""How long a request_id is remembered."""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What makes a repeated creation known as such."""

    tenant: str
    request_id: str
    digest: str

    @classmethod
    def of(cls, tenant: str, request_id: str, asked: pb.TrainingJob) -> "CreateRequest":
        """Describe the request to run `asked` in `tenant`."""
        terms = pb.TrainingJob()
        terms.CopyFrom(asked)
        terms.ClearField("spec")
        parts = (part.SerializeToString(deterministic=True) for part in (asked.spec, terms))
        return cls(tenant, request_id, hashlib.sha256(b"".join(parts)).hexdigest())


def first_answer(
    connection: Connection, request: CreateRequest, now: datetime
) -> pb.TrainingJob | None:
    """Return what was answered to `request` when it first came; None if it did not.

    Raises:
        RequestIdReusedError: Another request came with its id.
    """
    row = connection.execute(
        select(CREATE_REQUEST.c.digest, CREATE_REQUEST.c.job_id).where(
            CREATE_REQUEST.c.tenant == request.tenant,
            CREATE_REQUEST.c.request_id == request.request_id,
            CREATE_REQUEST.c.create_time_s > int((now - REQUEST_TTL).timestamp()),
        )
    ).one_or_none()
    if row is None:
        return None
    if row.digest != request.digest:
        raise RequestIdReusedError(request.request_id)
    return first_state(connection, row.job_id)


def remember(connection: Connection, request: CreateRequest, job_id: int, now: datetime) -> None:
    """Note that `request` made a job, and forget the requests of yesterday."""
    connection.execute(
        delete(CREATE_REQUEST).where(
            CREATE_REQUEST.c.create_time_s <= int((now - REQUEST_TTL).timestamp())
        )
    )
    connection.execute(
        insert(CREATE_REQUEST).values(
            tenant=request.tenant,
            request_id=request.request_id,
            digest=request.digest,
            job_id=job_id,
            create_time_s=int(now.timestamp()),
        )
    )

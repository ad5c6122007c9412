"""How a training job comes to be: everything that can be refused is refused before it is queued."""

import asyncio
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Final

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import TenantName, TrainingJobName
from servery_trainer.dataset_store import DatasetStore
from servery_trainer.examples import load_examples
from servery_trainer.idempotency import CreateRequest
from servery_trainer.spec import Spec
from servery_trainer.store import JobStore, queued

_CHECKS_AT_ONCE: Final = 2  # Each holds a whole dataset in memory.


def require_one_tenant(parent: TenantName, spec: Spec) -> None:
    """Refuse a job that would reach into another tenant.

    Raises:
        FieldInvalidError: The dataset or the model is not of `parent`.
    """
    rule = f"be of {parent}, like the job"
    if spec.dataset.tenant != parent.tenant:
        raise FieldInvalidError("training_job.spec.dataset", spec.dataset, rule)
    if spec.model.tenant != parent.tenant:
        raise FieldInvalidError("training_job.spec.publication.model", spec.model, rule)


def parse_request_id(text: str) -> str:
    """Return the request_id in its one canonical form; empty stays empty.

    Raises:
        FieldInvalidError: It is no UUID.
    """
    try:
        return str(uuid.UUID(text)) if text else ""
    except ValueError:
        raise FieldInvalidError("request_id", text, "be a UUID") from None


class Submissions:
    """Checks jobs against their data and queues them.

    Args:
        jobs: Where jobs go.
        datasets: Where their data is.
        now: The clock.
    """

    def __init__(
        self,
        jobs: JobStore,
        datasets: DatasetStore,
        now: Callable[[], datetime],
    ) -> None:
        self._jobs = jobs
        self._datasets = datasets
        self._now = now
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)

    async def create(
        self, parent: TenantName, asked: pb.TrainingSpec, spec: Spec, request_id: str
    ) -> pb.TrainingJob:
        """Queue a job, or return the first answer to the same request.

        Args:
            parent: The tenant of the job, of its data and of its model.
            asked: The spec as the caller wrote it.
            spec: The same, parsed.
            request_id: Empty or a UUID.

        Raises:
            RequestIdReusedError: The request_id came with another request.
            DatasetNotFoundError: There is no such dataset.
            FieldInvalidError: The task does not fit the format of the dataset.
            DatasetInvalidError: The data cannot be used as the spec asks.
        """
        request = CreateRequest.of(parent.tenant, request_id, asked) if request_id else None
        if request:
            earlier = await asyncio.to_thread(self._jobs.find, request, self._now())
            if earlier:
                return earlier
        await self._check(spec)
        name = TrainingJobName(parent.tenant, uuid.uuid4().hex)
        return await asyncio.to_thread(self._jobs.create, name, asked, request, self._now())

    async def rehearse(self, asked: pb.TrainingSpec, spec: Spec) -> pb.TrainingJob:
        """Check like `create`, and return the job that would be, without a name."""
        await self._check(spec)
        return queued("", asked, self._now())

    async def _check(self, spec: Spec) -> None:
        dataset = await asyncio.to_thread(self._datasets.get, spec.dataset)
        if dataset.format not in spec.task.dataset_formats:
            names = map(_format_name, sorted(spec.task.dataset_formats))
            rule = f"be a dataset of {' or '.join(names)} for this task"
            raise FieldInvalidError("training_job.spec.dataset", spec.dataset, rule)
        async with self._checks:
            await asyncio.to_thread(load_examples, spec, self._datasets.path(spec.dataset))


def _format_name(known: int) -> str:
    return dataset_pb2.DatasetFormat.Name(dataset_pb2.DatasetFormat.ValueType(known))

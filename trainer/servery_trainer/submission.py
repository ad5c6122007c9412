"""How a training job comes to be: everything that can be refused is refused before it is queued."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_rpc.identity import Caller
from servery_rpc.names import AliasName, TenantName, TrainingJobName, VersionName
from servery_trainer import frameworks
from servery_trainer.base_version import BaseVersion, Versions
from servery_trainer.custom_code import CustomCodePolicy
from servery_trainer.dataset_store import DatasetStore
from servery_trainer.examples import load_examples
from servery_trainer.idempotency import CreateRequest
from servery_trainer.jobs import CANCELLED, FAILED
from servery_trainer.spec import ROOT, Spec
from servery_trainer.store import JobStore, queued
from servery_trainer.terms import Capacity, Terms

_CHECKS_AT_ONCE: Final = 2  # Each holds a whole dataset in memory.


def require_rights(
    caller: Caller,
    parent: TenantName,
    spec: Spec,
    *,
    publishes: bool,
    root: str = ROOT,
) -> None:
    """Refuse to train `spec` for who may not, or out of reach of the tenant `parent`.

    Args:
        caller: Who asks.
        parent: The tenant of the job.
        spec: What to train.
        publishes: Whether the outcome shall be published.
        root: Path of the spec, to name fields by.

    Raises:
        FieldInvalidError: The dataset, the model or the base version is not of `parent`.
        PermissionDeniedError: The caller may not train the model, publish it or move its alias, or
            not read the base version.
    """
    rule = f"be of {parent}, like the job"
    if spec.dataset.tenant != parent.tenant:
        raise FieldInvalidError(f"{root}.dataset", spec.dataset, rule)
    if spec.model.tenant != parent.tenant:
        raise FieldInvalidError(f"{root}.publication.model", spec.model, rule)
    if spec.base_version:
        if spec.base_version.model.tenant != parent.tenant:
            raise FieldInvalidError(f"{root}.base_version", spec.base_version, rule)
        caller.require("read", parent.tenant, spec.base_version.model.model)
    caller.require("train", parent.tenant, spec.model.model)
    if publishes:
        caller.require("publish", parent.tenant, spec.model.model)
    if publishes and spec.alias:
        caller.require("promote", parent.tenant, spec.model.model)


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
        capacity: What all jobs together may use.
        now: The clock.
        versions: Where those are that jobs start from.
        custom_code: Whose modules are run.
    """

    def __init__(
        self,
        jobs: JobStore,
        datasets: DatasetStore,
        capacity: Capacity,
        now: Callable[[], datetime],
        versions: Versions,
        custom_code: CustomCodePolicy,
    ) -> None:
        self._jobs = jobs
        self._datasets = datasets
        self._capacity = capacity
        self._now = now
        self._versions = versions
        self._custom_code = custom_code
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)

    def parse_terms(self, asked: pb.TrainingJob) -> Terms:
        """Parse how a job is to be run.

        Raises:
            FieldInvalidError: A value is out of its range, or more than there is.
        """
        return Terms.parse(asked, self._capacity)

    async def create(
        self, parent: TenantName, asked: pb.TrainingJob, spec: Spec, terms: Terms, request_id: str
    ) -> pb.TrainingJob:
        """Queue a job, or return the first answer to the same request.

        Args:
            parent: The tenant of the job, of its data and of its model.
            asked: The job as the caller wrote it.
            spec: Its spec, parsed.
            terms: How to run it, parsed.
            request_id: Empty or a UUID.

        Raises:
            RequestIdReusedError: The request_id came with another request.
            DatasetNotFoundError: There is no such dataset.
            TrainingJobNotFoundError: There is no such job to resume.
            FieldInvalidError: The task does not fit the format of the dataset, or the job to resume
                is not one that stopped on the way to the same outcome.
            DatasetInvalidError: The data cannot be used as the spec asks.
            CustomCodeForbiddenError: It is to run code that this trainer does not run.
            VersionNotFoundError: The base version does not exist.
            AliasNotFoundError: It was named by an alias that does not exist.
            DependencyUnavailableError: The registry does not answer about the base version.
        """
        request = CreateRequest.of(parent.tenant, request_id, asked) if request_id else None
        if request:
            earlier = await asyncio.to_thread(self._jobs.find, request, self._now())
            if earlier:
                return earlier
        job = await self.rehearse(parent, asked, spec, terms)
        job.name = str(TrainingJobName(parent.tenant, uuid.uuid4().hex))
        return await asyncio.to_thread(self._jobs.create, job, request, self._now())

    async def rehearse(
        self, parent: TenantName, asked: pb.TrainingJob, spec: Spec, terms: Terms
    ) -> pb.TrainingJob:
        """Check like `create`, and return the job that would be, without a name."""
        if isinstance(spec.base_version, AliasName):
            version = await self._versions.pointed_at(spec.base_version)
            spec, asked = replace(spec, base_version=version), _copy(asked)
            asked.spec.base_version = str(version)
        if terms.resume_from:
            await self._check_resumed(parent, asked.spec, terms.resume_from)
        await self.check(spec)
        return queued("", asked.spec, terms, self._now())

    async def _check_resumed(
        self, parent: TenantName, spec: pb.TrainingSpec, name: TrainingJobName
    ) -> None:
        field = "training_job.resume_from"
        if name.tenant != parent.tenant:
            raise FieldInvalidError(field, name, f"be of {parent}, like the job")
        job = await asyncio.to_thread(self._jobs.get, name)
        if job.state not in (CANCELLED, FAILED):
            raise FieldInvalidError(field, name, "be a job that was cancelled or failed")
        if job.spec != spec:
            raise FieldInvalidError(field, name, "be a job with the same spec")

    async def check(self, spec: Spec) -> None:
        """Check a spec against its data.

        Raises:
            ServeryError: As `create`.
        """
        self._custom_code.require(spec.dataset.tenant, spec.to_proto())
        frameworks.require(spec.framework, f"{ROOT}.framework")
        dataset = await asyncio.to_thread(self._datasets.get, spec.dataset)
        if dataset.format not in spec.task.dataset_formats:
            names = map(_format_name, sorted(spec.task.dataset_formats))
            rule = f"be a dataset of {' or '.join(names)} for this task"
            raise FieldInvalidError("training_job.spec.dataset", spec.dataset, rule)
        base = None
        match spec.base_version:
            case VersionName() as version:
                base = await BaseVersion.ask(self._versions, version)
            case AliasName() as alias:  # Of a study, whose trials shall all start alike.
                raise FieldInvalidError(f"{ROOT}.base_version", alias, "be a version, no alias")
        async with self._checks:
            await asyncio.to_thread(_check_data, spec, self._datasets.path(spec.dataset), base)


def _check_data(spec: Spec, path: Path, base: BaseVersion | None) -> None:
    examples = load_examples(spec, path)
    if base:
        base.check(spec, examples)


def _copy(job: pb.TrainingJob) -> pb.TrainingJob:
    copy = pb.TrainingJob()
    copy.CopyFrom(job)
    return copy


def _format_name(known: int) -> str:
    return dataset_pb2.DatasetFormat.Name(dataset_pb2.DatasetFormat.ValueType(known))

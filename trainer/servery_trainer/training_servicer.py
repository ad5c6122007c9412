"""TrainingService on the wire: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from servery.trainer.v1 import training_pb2 as pb
from servery.trainer.v1 import training_pb2_grpc as pb_grpc
from servery_rpc.identity import caller_of
from servery_rpc.names import ModelName, TenantName, TrainingJobName
from servery_rpc.pages import page_token, parse_page
from servery_trainer.dataset_servicer import require_sight
from servery_trainer.event_log import EventLog, parse_resume_token, resume_token
from servery_trainer.job_logs import JobLogs
from servery_trainer.scheduler import Scheduler
from servery_trainer.spec import parse_spec
from servery_trainer.store import JobStore
from servery_trainer.submission import Submissions, parse_request_id, require_rights


class TrainingServicer(pb_grpc.TrainingServiceServicer):
    """Serves the jobs of one trainer."""

    def __init__(
        self,
        store: JobStore,
        submissions: Submissions,
        scheduler: Scheduler,
        events: EventLog[pb.WatchTrainingJobResponse],
        logs: JobLogs,
    ) -> None:
        self._store = store
        self._submissions = submissions
        self._scheduler = scheduler
        self._events = events
        self._logs = logs

    async def CreateTrainingJob(
        self, request: pb.CreateTrainingJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CreateTrainingJobResponse:
        """See training.proto."""
        parent = TenantName.parse(request.parent, "parent")
        caller = caller_of(context)
        caller.require("train", parent.tenant)
        request_id = parse_request_id(request.request_id)
        asked = request.training_job
        spec = parse_spec(asked.spec)
        terms = self._submissions.parse_terms(asked)
        require_rights(caller, parent, spec, publishes=not terms.without_publication)
        if request.validate_only:
            job = await self._submissions.rehearse(parent, asked, spec, terms)
        else:
            job = await self._submissions.create(parent, asked, spec, terms, request_id)
        return pb.CreateTrainingJobResponse(training_job=job)

    async def GetTrainingJob(
        self, request: pb.GetTrainingJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetTrainingJobResponse:
        """See training.proto."""
        name = TrainingJobName.parse(request.name)
        require_sight(caller_of(context), name.tenant)
        job = await asyncio.to_thread(self._store.get, name)
        return pb.GetTrainingJobResponse(training_job=job)

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListTrainingJobsResponse:
        """See training.proto."""
        parent = TenantName.parse(request.parent, "parent")
        require_sight(caller_of(context), parent.tenant)
        listing = f"{parent}/trainingJobs"
        page = parse_page(request.page_size, request.page_token, listing)
        jobs, after = await asyncio.to_thread(self._store.list, parent.tenant, page)
        token = page_token(listing, after) if after else ""
        return pb.ListTrainingJobsResponse(training_jobs=jobs, next_page_token=token)

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CancelTrainingJobResponse:
        """See training.proto."""
        name = TrainingJobName.parse(request.name)
        caller = caller_of(context)
        caller.require("train", name.tenant)
        job = await asyncio.to_thread(self._store.get, name)
        model = ModelName.parse(job.spec.publication.model).model
        caller.require("train", name.tenant, model)
        return pb.CancelTrainingJobResponse(training_job=await self._scheduler.cancel(name))

    async def WatchTrainingJob(
        self, request: pb.WatchTrainingJobRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        """See training.proto."""
        name = TrainingJobName.parse(request.name)
        require_sight(caller_of(context), name.tenant)
        after = parse_resume_token(name, request.resume_token)
        async with aclosing(self._events.watch(name, after)) as events:
            async for event in events:
                yield event

    async def StreamTrainingJobLogs(
        self,
        request: pb.StreamTrainingJobLogsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.StreamTrainingJobLogsResponse]:
        """See training.proto."""
        name = TrainingJobName.parse(request.name)
        require_sight(caller_of(context), name.tenant)
        start = parse_resume_token(name, request.resume_token)
        async with aclosing(self._logs.read(name, start, follow=request.follow)) as chunks:
            async for chunk, end in chunks:
                yield pb.StreamTrainingJobLogsResponse(
                    chunk=chunk, resume_token=resume_token(name, end)
                )

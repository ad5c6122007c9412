"""TuningService on the wire: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any

import grpc

from servery.trainer.v1 import tuning_pb2 as pb
from servery.trainer.v1 import tuning_pb2_grpc as pb_grpc
from servery_rpc.identity import caller_of
from servery_rpc.names import ModelName, StudyName, TenantName
from servery_rpc.pages import page_token, parse_page
from servery_trainer.dataset_servicer import require_sight
from servery_trainer.event_log import EventLog, parse_resume_token
from servery_trainer.studies import Plan, spec_errors
from servery_trainer.study_store import StudyStore
from servery_trainer.submission import Submissions, parse_request_id, require_rights
from servery_trainer.terms import Capacity
from servery_trainer.tuner import Tuner


class TuningServicer(pb_grpc.TuningServiceServicer):
    """Serves the studies of one trainer."""

    def __init__(
        self,
        studies: StudyStore,
        submissions: Submissions,
        tuner: Tuner,
        events: EventLog[pb.WatchStudyResponse],
        capacity: Capacity,
        now: Callable[[], datetime],
    ) -> None:
        self._studies = studies
        self._submissions = submissions
        self._tuner = tuner
        self._events = events
        self._capacity = capacity
        self._now = now

    async def CreateStudy(
        self, request: pb.CreateStudyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CreateStudyResponse:
        """See tuning.proto."""
        parent = TenantName.parse(request.parent, "parent")
        caller = caller_of(context)
        caller.require("train", parent.tenant)
        request_id = parse_request_id(request.request_id)
        plan = Plan.parse(request.study, self._capacity)
        with spec_errors():
            require_rights(caller, parent, plan.spec, publishes=not plan.without_publication)
            await self._submissions.check(plan.spec)
        study = plan.to_proto()
        if not request.validate_only:
            name = StudyName(parent.tenant, study_id(parent, request_id))
            study.name = str(name)
            body = request.study.SerializeToString(deterministic=True)
            digest = hashlib.sha256(body).hexdigest()
            study = await asyncio.to_thread(
                self._studies.create, study, request_id, digest, self._now()
            )
            self._tuner.start(name)
        return pb.CreateStudyResponse(study=study)

    async def GetStudy(
        self, request: pb.GetStudyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetStudyResponse:
        """See tuning.proto."""
        name = StudyName.parse(request.name)
        require_sight(caller_of(context), name.tenant)
        return pb.GetStudyResponse(study=await asyncio.to_thread(self._studies.get, name))

    async def ListStudies(
        self, request: pb.ListStudiesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListStudiesResponse:
        """See tuning.proto."""
        parent = TenantName.parse(request.parent, "parent")
        require_sight(caller_of(context), parent.tenant)
        listing = f"{parent}/studies"
        page = parse_page(request.page_size, request.page_token, listing)
        studies, after = await asyncio.to_thread(self._studies.list, parent.tenant, page)
        token = page_token(listing, after) if after else ""
        return pb.ListStudiesResponse(studies=studies, next_page_token=token)

    async def CancelStudy(
        self, request: pb.CancelStudyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CancelStudyResponse:
        """See tuning.proto."""
        name = StudyName.parse(request.name)
        caller = caller_of(context)
        caller.require("train", name.tenant)
        study = await asyncio.to_thread(self._studies.get, name)
        model = ModelName.parse(study.spec.publication.model).model
        caller.require("train", name.tenant, model)
        return pb.CancelStudyResponse(study=await self._tuner.cancel(name))

    async def ListTrials(
        self, request: pb.ListTrialsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListTrialsResponse:
        """See tuning.proto."""
        name = StudyName.parse(request.parent, "parent")
        require_sight(caller_of(context), name.tenant)
        listing = f"{name}/trials"
        page = parse_page(request.page_size, request.page_token, listing)
        trials, after = await asyncio.to_thread(self._studies.leaderboard, name, page)
        token = page_token(listing, after) if after else ""
        return pb.ListTrialsResponse(trials=trials, next_page_token=token)

    async def WatchStudy(
        self, request: pb.WatchStudyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchStudyResponse]:
        """See tuning.proto."""
        name = StudyName.parse(request.name)
        require_sight(caller_of(context), name.tenant)
        after = parse_resume_token(name, request.resume_token)
        async with aclosing(self._events.watch(name, after)) as events:
            async for event in events:
                yield event


def study_id(parent: TenantName, request_id: str) -> str:
    """Return the id of a new study; that of the same request is the same."""
    if not request_id:
        return uuid.uuid4().hex
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{parent}/studies?request_id={request_id}").hex

"""Run the trainer: `servery-trainer --data-dir DIR --registry ADDRESS`."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

from servery.trainer.v1.dataset_pb2_grpc import add_DatasetServiceServicer_to_server
from servery.trainer.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server
from servery.trainer.v1.tuning_pb2_grpc import add_TuningServiceServicer_to_server
from servery_rpc.names import TrainingJobName, VersionName
from servery_rpc.process import run_process, stop_requested
from servery_rpc.server import RunningServer, Service, serving
from servery_trainer.base_version import fetch
from servery_trainer.custom_code import CustomCodePolicy
from servery_trainer.database import open_database
from servery_trainer.dataset_servicer import DatasetServicer
from servery_trainer.dataset_store import DatasetStore
from servery_trainer.durable import exclusive
from servery_trainer.event_log import EventLog
from servery_trainer.executor import Work
from servery_trainer.job_directories import JobDirectories
from servery_trainer.job_logs import JobLogs
from servery_trainer.local_executor import (
    JOB_COMMAND,
    LocalExecutor,
    can_shut_in,
    network_is_closed,
)
from servery_trainer.progress import JOBS
from servery_trainer.publication import Publications
from servery_trainer.publisher import RegistryPublisher, dial_registry
from servery_trainer.registry_versions import RegistryVersions
from servery_trainer.resources import machine
from servery_trainer.scheduler import Scheduler
from servery_trainer.settings import TrainerSettings
from servery_trainer.store import JobStore
from servery_trainer.study_store import STUDIES, StudyStore
from servery_trainer.submission import Submissions
from servery_trainer.terms import Capacity
from servery_trainer.training_servicer import TrainingServicer
from servery_trainer.tuner import Tuner
from servery_trainer.tuning_servicer import TuningServicer
from servery_trainer.uploads import Uploads

log = logging.getLogger(__name__)

_now = partial(datetime.now, UTC)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; return the exit status."""
    return run_process(TrainerSettings, "SERVERY_TRAINER", run, argv)


async def run(settings: TrainerSettings, command: Sequence[str] = JOB_COMMAND) -> None:
    """Serve until asked to stop; see `trainer`."""
    async with trainer(settings, command) as server:
        log.info("trainer listening on %s", server.address)
        await stop_requested()


@asynccontextmanager
async def trainer(
    settings: TrainerSettings, command: Sequence[str] = JOB_COMMAND
) -> AsyncIterator[RunningServer]:
    """Serve and run jobs inside the block. Jobs that run when it is left start again in the next.

    Args:
        settings: Where and how.
        command: The program of a training job.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(settings.data_dir):
        async with _trainer_alone(settings, command) as server:
            yield server


@asynccontextmanager
async def _trainer_alone(
    settings: TrainerSettings, command: Sequence[str]
) -> AsyncIterator[RunningServer]:
    where = settings.database_url or settings.data_dir / "trainer.db"
    engine = await asyncio.to_thread(open_database, where)
    loop = asyncio.get_running_loop()
    events = EventLog(engine, loop, JOBS)
    study_events = EventLog(engine, loop, STUDIES)
    wake = asyncio.Event()
    capacity = Capacity.of(machine(), settings.cores, settings.memory_bytes, settings.parallel_jobs)

    def moved() -> None:
        loop.call_soon_threadsafe(wake.set)

    store = JobStore(engine, capacity, events.changed, moved)
    studies = StudyStore(engine, store, study_events.changed)
    limits = settings.upload_limits()
    datasets = DatasetStore(engine, settings.data_dir / "datasets", limits, _now)
    uploads = Uploads(datasets, settings.data_dir / "datasets" / ".uploads", limits, _now)
    executor = LocalExecutor(address_space_bytes=settings.job_memory_bytes, command=command)
    if not await asyncio.to_thread(network_is_closed):
        log.warning("the kernel permits no network namespaces: jobs can reach the network")
    custom_code = CustomCodePolicy(
        settings.custom_code_tenants,
        bool(settings.custom_code_tenants)
        and await asyncio.to_thread(can_shut_in, settings.data_dir),
    )
    if custom_code.tenants and not custom_code.has_sandbox:
        log.warning("this machine cannot shut a job in: code of tenants is refused")
    directories = JobDirectories(settings.data_dir / "jobs")
    logs = JobLogs(store, directories)
    async with dial_registry(settings.registry) as channel, asyncio.TaskGroup() as tasks:
        versions = RegistryVersions(channel)

        async def make_ready(work: Work) -> None:
            custom_code.require(TrainingJobName.parse(work.name).tenant, work.spec)
            if work.base:
                await fetch(versions, VersionName.parse(work.spec.base_version), work.base)

        scheduler = Scheduler(
            store,
            executor,
            Publications(store, RegistryPublisher(channel), directories, _now),
            make_ready=make_ready,
            dataset_path=datasets.path,
            directories=directories,
            wake=wake,
            now=_now,
        )
        submissions = Submissions(store, datasets, capacity, _now, versions, custom_code)
        training = TrainingServicer(store, submissions, scheduler, events, logs)
        tuner = Tuner(studies, scheduler, events, directories, capacity, _now)
        tuning = TuningServicer(studies, submissions, tuner, study_events, capacity, _now)
        running = [tasks.create_task(scheduler.run()), tasks.create_task(tuner.run())]
        async with serving(
            settings,
            Service(
                "servery.trainer.v1.DatasetService",
                partial(add_DatasetServiceServicer_to_server, DatasetServicer(datasets, uploads)),
            ),
            Service(
                "servery.trainer.v1.TrainingService",
                partial(add_TrainingServiceServicer_to_server, training),
            ),
            Service(
                "servery.trainer.v1.TuningService",
                partial(add_TuningServiceServicer_to_server, tuning),
            ),
        ) as server:
            try:
                yield server
            finally:
                for watched in (events, study_events, logs):
                    watched.close()  # Else each watcher would hold up the drain.
        for task in running:
            task.cancel()
    engine.dispose()


if __name__ == "__main__":
    sys.exit(main())

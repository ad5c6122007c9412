"""Jobs from their creation to their end, in whatever way they, the trainer or the registry end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.registry.v1 import registry_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.names import TrainingJobName
from servery_trainer.__main__ import trainer
from servery_trainer.database import open_database
from servery_trainer.event_log import EventLog
from servery_trainer.job_directories import JobDirectories
from servery_trainer.jobs import CANCELLED, FAILED, PUBLISHING, QUEUED, RUNNING, SUCCEEDED
from servery_trainer.local_executor import LocalExecutor
from servery_trainer.progress import JOBS
from servery_trainer.publication import Publications
from servery_trainer.publisher import RegistryPublisher, dial_registry
from servery_trainer.scheduler import Scheduler
from servery_trainer.settings import TrainerSettings
from servery_trainer.store import JobStore
from tests.trainer.service import (
    CAPACITY,
    NOWHERE,
    Client,
    alive,
    failure,
    killable_trainer,
    queued_job,
    ready,
    registry_client,
    running_registry,
    running_trainer,
    spec,
    until,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str], registry: str) -> AsyncIterator[Client]:
    async with running_trainer(tmp_path, command, registry) as client:
        yield client


def states(events: Sequence[pb.WatchTrainingJobResponse]) -> list[int]:
    return [e.training_job.state for e in events if e.HasField("training_job")]


async def test_a_job_ends_in_a_version_and_its_alias(client: Client, registry: str) -> None:
    job = await client.train("succeeds-alias", alias="production")
    events = await client.events(job.name)
    assert states(events) == [QUEUED, RUNNING, PUBLISHING, SUCCEEDED]
    ended = events[-1].training_job
    assert ended == await client.get(job.name)
    version = "tenants/default/models/succeeds-alias/versions/1"
    assert (ended.result.version, ended.attempt) == (version, 1)
    assert ended.create_time.ToDatetime() <= ended.start_time.ToDatetime()
    assert ended.start_time.ToDatetime() < ended.end_time.ToDatetime()
    async with registry_client(registry) as stub:
        alias = "tenants/default/models/succeeds-alias/aliases/production"
        got = await stub.GetAlias(registry_pb2.GetAliasRequest(name=alias))
        assert got.alias.version == version
        stored = await stub.GetVersion(registry_pb2.GetVersionRequest(name=version))
        assert dict(stored.version.metrics) == {"accuracy": 0.75}


async def test_progress_reaches_the_watcher_and_the_job(client: Client) -> None:
    job = await client.train("succeeds-progress")
    events = await client.events(job.name)
    seen = [event.progress for event in events if event.HasField("progress")]
    assert seen[-1].epoch == 3
    assert seen[-1].metrics["val_loss"] == pytest.approx(1 / 3)


async def test_a_chatty_job_is_heard_to_its_end(client: Client) -> None:
    job = await client.train("chatters")
    events = await client.events(job.name)
    assert events[-1].training_job.state == SUCCEEDED
    steps = [event.progress.step for event in events if event.HasField("progress")]
    assert steps[-1] == 1999
    assert len(steps) < 20


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param("aborts", reasons.ERROR_REASON_TRAINING_JOB_CRASHED, id="crash"),
        pytest.param("refuses", reasons.ERROR_REASON_DATASET_INVALID, id="error of the job"),
        pytest.param("breaks", reasons.ERROR_REASON_GRAPH_REFUSED, id="refused by the registry"),
    ],
)
async def test_a_failed_job_says_why_and_publishes_nothing(
    client: Client,
    registry: str,
    tmp_path: Path,
    model: str,
    reason: "reasons.ErrorReason.ValueType",
) -> None:
    job = await client.train(model, {"max_attempts": 1}, alias="production")
    ended = await client.end(job.name)
    assert (ended.state, ended.error.reason) == (FAILED, reason)
    assert str(tmp_path) not in ended.error.message
    assert not ended.HasField("result")
    async with registry_client(registry) as stub:
        request = registry_pb2.GetModelRequest(name=f"tenants/default/models/{model}")
        assert (await failure(stub.GetModel(request))).code is grpc.StatusCode.NOT_FOUND


async def test_one_place_runs_one_job_at_a_time_in_order(client: Client) -> None:
    first, second = await client.train("hangs"), await client.train("hangs")
    third = await client.train("succeeds-third")
    await client.pid(first.name)
    assert (await client.get(second.name)).state == QUEUED
    await client.cancel(second.name)
    assert states(await client.events(second.name)) == [QUEUED, CANCELLED]
    assert (await client.get(third.name)).state == QUEUED
    await client.cancel(first.name)
    assert (await client.end(third.name)).state == SUCCEEDED


async def test_two_places_run_two_jobs(tmp_path: Path, command: Sequence[str]) -> None:
    async with running_trainer(tmp_path, command, parallel_jobs=2) as client:
        names = [(await client.train("hangs")).name for _ in range(2)]
        pids = [await client.pid(name) for name in names]
        assert alive(pids[0])
        assert alive(pids[1])
    assert not alive(pids[0])
    assert not alive(pids[1])


async def test_a_cancelled_process_is_gone_before_the_job_is(client: Client) -> None:
    job = await client.train("hangs")
    pid = await client.pid(job.name)
    await asyncio.gather(client.cancel(job.name), client.cancel(job.name))
    assert states(await client.events(job.name)) == [QUEUED, RUNNING, CANCELLED]
    assert not alive(pid)


async def test_a_cancel_is_carried_out_though_its_caller_left(
    tmp_path: Path, command: Sequence[str]
) -> None:
    engine = open_database(tmp_path / "t.db")
    log = EventLog(engine, asyncio.get_running_loop(), JOBS)
    store = JobStore(engine, CAPACITY, log.changed)
    async with dial_registry(NOWHERE) as channel:
        directories = JobDirectories(tmp_path)
        scheduler = Scheduler(
            store,
            LocalExecutor(command=command),
            Publications(store, RegistryPublisher(channel), directories, lambda: NOON),
            make_ready=ready,
            dataset_path=lambda _: tmp_path / "data.csv",
            directories=directories,
            wake=asyncio.Event(),
            now=lambda: NOON,
        )
        name = TrainingJobName("default", "a")
        asked = spec(f"tenants/default/datasets/{'0' * 64}", "hangs")
        store.create(queued_job(str(name), NOON, asked), None, NOON)
        running = asyncio.create_task(scheduler.run())
        async with asyncio.timeout(10):
            async for event in log.watch(name, 0):
                if event.progress.metrics:  # Its process has begun to hang.
                    leaving = asyncio.create_task(scheduler.cancel(name))
                    await asyncio.sleep(0)
                    leaving.cancel()
        assert store.get(name).state == CANCELLED
        running.cancel()
        await asyncio.wait([running])
    engine.dispose()


async def test_a_job_whose_process_died_is_tried_again(client: Client) -> None:
    job = await client.train("dies-1")
    events = await client.events(job.name)
    assert states(events) == [QUEUED, RUNNING, QUEUED, RUNNING, PUBLISHING, SUCCEEDED]
    assert events[-1].training_job.attempt == 2


async def test_a_job_that_keeps_dying_fails(client: Client) -> None:
    job = await client.train("dies-9", {"max_attempts": 2})
    ended = await client.end(job.name)
    assert (ended.state, ended.attempt) == (FAILED, 2)
    assert ended.error.reason == reasons.ERROR_REASON_TRAINING_JOB_CRASHED


async def test_a_job_that_says_why_it_failed_is_not_tried_again(client: Client) -> None:
    job = await client.train("refuses", {"max_attempts": 5})
    assert (await client.end(job.name)).attempt == 1


async def test_a_job_ends_at_its_deadline(client: Client) -> None:
    job = await client.train("hangs-late", {"deadline_s": 0.5})
    ended = await client.end(job.name)
    assert ended.state == FAILED
    assert ended.error.reason == reasons.ERROR_REASON_TRAINING_DEADLINE
    assert ended.error.metadata == {"deadline_s": "0.5"}


@pytest.mark.parametrize(
    "deadline_s",
    [
        pytest.param(0, id="cancelled"),
        pytest.param(2, id="at its deadline", marks=pytest.mark.slow),
    ],
)
async def test_a_stopped_job_is_resumed_from_its_last_checkpoint(
    client: Client, deadline_s: float
) -> None:
    job = await client.train("saves", {"deadline_s": deadline_s})
    await client.pid(job.name)
    if not deadline_s:
        await client.cancel(job.name)
    ended = await client.end(job.name)
    assert ended.state == (FAILED if deadline_s else CANCELLED)
    resumed = await client.create(job.spec, terms={"resume_from": job.name})
    assert (await client.end(resumed.name)).state == SUCCEEDED


async def test_a_job_without_publication_shows_its_result(client: Client, registry: str) -> None:
    job = await client.train("succeeds-quietly", {"without_publication": True})
    events = await client.events(job.name)
    assert states(events) == [QUEUED, RUNNING, SUCCEEDED]
    result = events[-1].training_job.result
    assert (dict(result.metrics), result.version) == ({"accuracy": 0.75}, "")
    async with registry_client(registry) as stub:
        request = registry_pb2.GetModelRequest(name=job.spec.publication.model)
        assert (await failure(stub.GetModel(request))).code is grpc.StatusCode.NOT_FOUND


async def test_the_more_urgent_job_runs_first(client: Client) -> None:
    first = await client.train("hangs")
    await client.pid(first.name)
    low = await client.train("succeeds-low", {"priority": 10})
    high = await client.train("succeeds-high", {"priority": 90})
    await client.cancel(first.name)
    low, high = await client.end(low.name), await client.end(high.name)
    assert high.start_time.ToDatetime() < low.start_time.ToDatetime()


async def test_two_jobs_that_publish_one_model_make_two_versions(
    tmp_path: Path, command: Sequence[str], registry: str
) -> None:
    async with running_trainer(tmp_path, command, registry, parallel_jobs=2) as client:
        jobs = [await client.train("succeeds-twice", alias="production") for _ in range(2)]
        ended = await asyncio.gather(*(client.end(job.name) for job in jobs))
    model = "tenants/default/models/succeeds-twice"
    assert [job.state for job in ended] == [SUCCEEDED, SUCCEEDED]
    versions = {job.result.version for job in ended}
    assert versions == {f"{model}/versions/1", f"{model}/versions/2"}
    async with registry_client(registry) as stub:
        alias = registry_pb2.GetAliasRequest(name=f"{model}/aliases/production")
        assert (await stub.GetAlias(alias)).alias.version in versions


async def test_the_disk_is_given_back_but_for_the_log(client: Client, tmp_path: Path) -> None:
    job = await client.train("succeeds-tidily")
    await client.end(job.name)
    directory = tmp_path / "jobs" / "default" / job.name.rpartition("/")[2]
    await until(lambda: not (directory / "bundle").exists())
    assert (directory / "job.log").read_text() == "trains succeeds-tidily\n"


@pytest.mark.slow
async def test_publishing_waits_for_a_registry(tmp_path: Path, command: Sequence[str]) -> None:
    registry = tmp_path / "r"
    registry.mkdir()
    address = f"unix:{registry / 's'}"
    async with running_trainer(tmp_path / "t", command, address) as client:
        job = await client.train("succeeds-late", alias="production")
        await client.until(job.name, PUBLISHING)
        with running_registry(registry):
            assert (await client.end(job.name)).state == SUCCEEDED


async def test_publishing_can_be_cancelled_while_no_registry_answers(
    tmp_path: Path, command: Sequence[str]
) -> None:
    async with running_trainer(tmp_path, command) as client:
        job = await client.train("succeeds-never")
        await client.until(job.name, PUBLISHING)
        assert (await client.cancel(job.name)).state == CANCELLED
        assert (await client.end(job.name)).state == CANCELLED


async def test_a_new_trainer_publishes_what_the_old_one_proved(
    tmp_path: Path, command: Sequence[str], registry: str
) -> None:
    async with running_trainer(tmp_path, command) as client:
        job = await client.train("succeeds-anyway")
        await client.until(job.name, PUBLISHING)
    async with running_trainer(tmp_path, command, registry) as client:
        ended = await client.end(job.name)
        assert (ended.state, ended.attempt) == (SUCCEEDED, 1)


async def test_watchers_do_not_hold_up_a_trainer_that_stops(
    tmp_path: Path, command: Sequence[str]
) -> None:
    settings = TrainerSettings(data_dir=tmp_path, registry=NOWHERE, drain_s=60)
    async with AsyncExitStack() as after:
        async with trainer(settings, command) as server:
            channel = grpc.aio.insecure_channel(server.address)
            client = Client(await after.enter_async_context(channel))
            job = await client.train("hangs")
            begun = asyncio.Event()
            watching = asyncio.create_task(failure(follow(client, job.name, begun)))
            await asyncio.wait_for(begun.wait(), 10)
        error = await asyncio.wait_for(watching, 10)
    assert error.code is grpc.StatusCode.UNAVAILABLE


async def follow(client: Client, name: str, begun: asyncio.Event) -> None:
    """Watch a job; tell when the first event is here."""
    async for _ in client.watch(name):
        begun.set()


@pytest.mark.slow
async def test_a_killed_trainer_loses_no_job(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, registry: str
) -> None:
    directory = tmp_path_factory.mktemp("t")  # Short: it holds a socket.
    async with killable_trainer(directory, bundle, registry) as (client, process):
        running, waiting = await client.train("resumes"), await client.train("succeeds-after")
        pid = await client.pid(running.name)
        last = await client.watch(running.name).read()
        process.kill()
    await until(lambda: not alive(pid))
    async with killable_trainer(directory, bundle, registry) as (client, _):
        events = await client.events(running.name, last.resume_token)
        assert states(events) == [RUNNING, QUEUED, RUNNING, PUBLISHING, SUCCEEDED]
        assert events[-1].training_job.attempt == 2
        assert (await client.end(waiting.name)).attempt == 1


async def test_two_trainers_do_not_share_a_directory(
    tmp_path: Path, command: Sequence[str]
) -> None:
    async with running_trainer(tmp_path, command):
        with pytest.raises(RuntimeError, match="in use"):
            async with running_trainer(tmp_path, command):
                pass

"""What watchers see: everything so far, then what happens, and an end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import DependencyUnavailableError, FieldInvalidError
from servery_rpc.names import TrainingJobName
from servery_trainer.database import open_database
from servery_trainer.event_log import EventLog, parse_resume_token
from servery_trainer.jobs import QUEUED, RUNNING
from servery_trainer.progress import JOBS, Recorder, coalesce
from servery_trainer.store import JobStore
from tests.trainer.service import CAPACITY, queued_job

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NAME = TrainingJobName("default", "a")
TRAINING = pb.PHASE_TRAINING


class World:
    """A log with one running job."""

    def __init__(self, path: Path) -> None:
        self.engine = open_database(path)
        self.log = EventLog(self.engine, asyncio.get_running_loop(), JOBS)
        self.store = JobStore(self.engine, CAPACITY, self.log.changed)
        self.store.create(queued_job(str(NAME), NOON), None, NOON)
        self.store.claim(NOON)

    def train(self, *progress: pb.Progress) -> None:
        self.store.record(NAME, progress)

    def end(self) -> None:
        self.store.end_run(NAME, pb.JobError(message="no"), NOON)

    async def watch(self, after: int = 0) -> Sequence[pb.WatchTrainingJobResponse]:
        async with asyncio.timeout(10):
            return [event async for event in self.log.watch(NAME, after)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "t.db")
    yield world
    world.engine.dispose()


def step(epoch: int, number: int, **metrics: float) -> pb.Progress:
    return pb.Progress(phase=TRAINING, epoch=epoch, step=number, metrics=metrics)


async def test_of_one_epoch_the_newest_step_and_the_end_stay(world: World) -> None:
    world.train(step(0, 1, loss=3), step(0, 2, loss=2), step(1, 0, loss=1, val_loss=1))
    world.train(step(1, 1, loss=1), step(1, 2, loss=0))
    world.end()
    seen = [event.progress for event in await world.watch() if event.HasField("progress")]
    assert [(p.epoch, p.step, "val_loss" in p.metrics) for p in seen] == [
        (0, 2, False),
        (1, 0, True),
        (1, 2, False),
    ]


async def test_a_watch_continues_behind_any_token(world: World) -> None:
    world.train(step(0, 1), step(1, 0))
    world.end()
    events = await world.watch()
    for number, event in enumerate(events, start=1):
        assert await world.watch(parse_resume_token(NAME, event.resume_token)) == events[number:]


async def test_a_long_log_arrives_whole(world: World) -> None:
    world.train(*(step(epoch, 0) for epoch in range(1000)))
    world.end()
    seen = [event.progress.epoch for event in await world.watch() if event.HasField("progress")]
    assert seen == list(range(1000))


async def test_all_watchers_follow_live_to_the_end(world: World) -> None:
    arrived = asyncio.Semaphore(0)

    async def follow() -> list[pb.WatchTrainingJobResponse]:
        events = []
        async for event in world.log.watch(NAME, 0):
            events.append(event)
            arrived.release()
        return events

    watchers = [asyncio.create_task(follow()) for _ in range(20)]
    for _ in range(2 * len(watchers)):  # QUEUED and RUNNING: now all wait for more.
        await asyncio.wait_for(arrived.acquire(), 10)
    await asyncio.to_thread(world.train, step(1, 0))
    await asyncio.to_thread(world.end)
    first, *others = await asyncio.wait_for(asyncio.gather(*watchers), 10)
    assert [event.training_job.state for event in first[:2]] == [QUEUED, RUNNING]
    assert all(other == first for other in others)
    assert len(first) == 4


async def test_a_watcher_is_sent_away_when_the_trainer_stops(world: World) -> None:
    async with aclosing(world.log.watch(NAME, 0)) as events:
        await anext(events)
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        world.log.close()
        with pytest.raises(DependencyUnavailableError):
            await asyncio.wait_for(waiting, 10)


@pytest.mark.parametrize(
    "token", ["x", "a", "a:", "a:x", "b:1", "a:-1", ":1", "a:²", "a:01", "a:" + "9" * 99]
)
def test_a_token_of_anything_else_is_refused(token: str) -> None:
    with pytest.raises(FieldInvalidError):
        parse_resume_token(NAME, token)


def test_only_the_newest_of_a_phase_waits_to_be_logged() -> None:
    pending: list[pb.Progress] = []
    for progress in (step(0, 1), step(0, 2), pb.Progress(phase=pb.PHASE_EVALUATING)):
        coalesce(pending, progress)
    assert [p.phase for p in pending] == [TRAINING, pb.PHASE_EVALUATING]
    assert pending[0].step == 2


async def test_a_flood_is_logged_a_few_times_and_to_its_end() -> None:
    batches: list[Sequence[pb.Progress]] = []
    async with Recorder(batches.append) as recorder:
        for number in range(1, 1001):
            recorder.put(step(0, number))
            await asyncio.sleep(0)
    assert len(batches) <= 3
    assert batches[-1][-1].step == 1000

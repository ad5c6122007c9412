"""Jobs in the database: the queue, the states, repeated requests, pages."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError, RequestIdReusedError
from servery_rpc.names import TrainingJobName
from servery_rpc.pages import Page
from servery_trainer.database import open_database
from servery_trainer.idempotency import CreateRequest
from servery_trainer.jobs import (
    CANCELLED,
    FAILED,
    PUBLISHING,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    TrainingJobEndedError,
    TrainingJobNotFoundError,
)
from servery_trainer.resources import Resources
from servery_trainer.store import JobStore
from servery_trainer.terms import Capacity
from tests.trainer.service import queued_job

WIDE = Capacity(Resources(cores=8, memory_bytes=64 * 1024**3), parallel_jobs=8)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RESULT = pb.TrainingResult(metrics={"accuracy": 1})
ERROR = pb.JobError(reason=reasons.ERROR_REASON_PARITY_FAILED, message="differs")


@pytest.fixture
def engine(empty_database: Path | URL) -> Iterator[Engine]:
    engine = open_database(empty_database)
    yield engine
    engine.dispose()


@pytest.fixture
def changed() -> list[str]:
    return []


@pytest.fixture
def store(engine: Engine, changed: list[str]) -> JobStore:
    return JobStore(engine, WIDE, changed.append)


def add(
    store: JobStore, job: str, request: CreateRequest | None = None, **terms: Any
) -> TrainingJobName:
    name = TrainingJobName("default", job)
    spec = pb.TrainingSpec(dataset=job)
    store.create(queued_job(str(name), NOON, spec, **terms), request, NOON)
    return name


def publishing(store: JobStore) -> TrainingJobName:
    name = add(store, "a")
    store.claim(NOON)
    store.end_run(name, RESULT, NOON)
    return name


def test_the_oldest_job_runs_first(store: JobStore) -> None:
    names = [add(store, job) for job in "cab"]
    claimed = [store.claim(NOON) for _ in names]
    assert [job.name for job in claimed if job] == [str(name) for name in names]
    assert store.claim(NOON) is None


def test_a_claimed_job_runs_its_first_attempt(store: JobStore) -> None:
    name = add(store, "a")
    store.claim(NOON)
    job = store.get(name)
    assert (job.state, job.attempt, job.progress.phase) == (RUNNING, 1, pb.PHASE_STARTING)
    assert job.start_time.ToDatetime(UTC) == NOON


def test_the_result_shows_only_once_it_is_published(store: JobStore) -> None:
    name = publishing(store)
    assert store.get(name).state == PUBLISHING
    assert not store.get(name).HasField("result")
    store.published(name, "tenants/default/models/m/versions/1")
    assert not store.get(name).HasField("result")
    store.end_publication(name, None, NOON)
    job = store.get(name)
    assert job.state == SUCCEEDED
    assert job.result.version == "tenants/default/models/m/versions/1"
    assert job.end_time.ToDatetime(UTC) == NOON


def test_an_error_ends_the_job(store: JobStore) -> None:
    name = add(store, "a")
    store.claim(NOON)
    assert store.end_run(name, ERROR, NOON).state == FAILED
    assert store.get(name).error == ERROR


def test_watchers_hear_of_each_change_of_state(store: JobStore, changed: list[str]) -> None:
    name = publishing(store)
    store.published(name, "v")
    store.end_publication(name, None, NOON)
    assert changed == [str(name)] * 4


def test_a_queued_job_is_cancelled_at_once(store: JobStore) -> None:
    name = add(store, "a")
    assert store.cancel(name, NOON).state == CANCELLED
    assert store.claim(NOON) is None


def test_a_running_job_is_cancelled_however_it_ends(store: JobStore) -> None:
    name = add(store, "a")
    store.claim(NOON)
    assert store.cancel(name, NOON).state == RUNNING
    assert store.cancel_requested(name)
    assert store.end_run(name, RESULT, NOON).state == CANCELLED


def test_publishing_can_be_cancelled_until_the_last_bytes_go(store: JobStore) -> None:
    name = publishing(store)
    assert store.begin_commit(name)
    with pytest.raises(TrainingJobEndedError):
        store.cancel(name, NOON)
    assert store.get(name).state == PUBLISHING


def test_no_last_bytes_after_a_cancel(store: JobStore) -> None:
    name = publishing(store)
    assert store.cancel(name, NOON).state == CANCELLED
    assert not store.begin_commit(name)
    store.end_publication(name, None, NOON)
    assert store.get(name).state == CANCELLED


def test_an_ended_job_cannot_be_cancelled(store: JobStore) -> None:
    name = add(store, "a")
    store.cancel(name, NOON)
    with pytest.raises(TrainingJobEndedError) as refused:
        store.cancel(name, NOON)
    assert refused.value.metadata["state"] == "TRAINING_JOB_STATE_CANCELLED"


def test_a_new_trainer_queues_again_what_ran(store: JobStore) -> None:
    ran, waited = add(store, "a"), add(store, "b")
    store.claim(NOON)
    store.recover(NOON)
    assert (store.get(ran).state, store.get(waited).state) == (QUEUED, QUEUED)
    job = store.claim(NOON + timedelta(hours=1))
    assert job is not None
    assert (job.name, job.attempt) == (str(ran), 2)
    assert job.start_time.ToDatetime(UTC) == NOON


def test_a_new_trainer_keeps_the_promise_to_cancel(store: JobStore) -> None:
    name = add(store, "a")
    store.claim(NOON)
    store.cancel(name, NOON)
    store.recover(NOON)
    assert store.get(name).state == CANCELLED


def test_a_new_trainer_publishes_what_was_proven(store: JobStore) -> None:
    name = publishing(store)
    store.recover(NOON)
    assert store.publishing() == [name]
    job = store.get_publishing(name)
    assert job is not None
    assert job.result == RESULT


def test_a_repeated_request_gets_the_first_answer(store: JobStore) -> None:
    request = CreateRequest("default", "id", "body")
    name = add(store, "a", request)
    store.claim(NOON)
    again = store.create(queued_job("tenants/default/trainingJobs/b", NOON), request, NOON)
    assert (again.name, again.state) == (str(name), QUEUED)
    assert store.find(request, NOON) == again
    with pytest.raises(TrainingJobNotFoundError):
        store.get(TrainingJobName("default", "b"))


def test_a_request_id_belongs_to_one_request(store: JobStore) -> None:
    add(store, "a", CreateRequest("default", "id", "body"))
    with pytest.raises(RequestIdReusedError):
        add(store, "b", CreateRequest("default", "id", "another body"))
    add(store, "c", CreateRequest("acme", "id", "another body"))


def test_a_request_id_is_forgotten_after_a_day(store: JobStore) -> None:
    request = CreateRequest("default", "id", "body")
    add(store, "a", request)
    later = NOON + timedelta(hours=24, seconds=1)
    assert store.find(request, later) is None
    name = "tenants/default/trainingJobs/b"
    assert store.create(queued_job(name, later), request, later).name == name


def test_pages_go_from_the_newest_to_the_oldest(store: JobStore) -> None:
    for job in "abc":
        add(store, job)
    store.create(queued_job("tenants/acme/trainingJobs/x", NOON), None, NOON)
    first, after = store.list("default", Page(2, None))
    add(store, "d")  # Between two pages: neither repeats nor hides any.
    second, end = store.list("default", Page(2, after))
    assert [job.name[-1] for job in (*first, *second)] == ["c", "b", "a"]
    assert end is None


def test_a_page_token_that_was_made_up_is_refused(store: JobStore) -> None:
    with pytest.raises(FieldInvalidError):
        store.list("default", Page(2, "x"))

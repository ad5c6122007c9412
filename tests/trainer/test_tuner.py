"""Studies over the wire, from their creation to their end, in whatever way they or others end."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.registry.v1 import registry_pb2
from servery.trainer.v1 import tuning_pb2 as pb
from servery_trainer.jobs import CANCELLED, SUCCEEDED
from tests.trainer.service import (
    Client,
    failure,
    killable_trainer,
    registry_client,
    running_trainer,
    spec,
    until,
)

RATE: Mapping[str, Any] = {
    "path": "training.learning_rate",
    "floats": {"low": 1e-4, "high": 1.0, "log": True},
}
RUNNING = pb.TRIAL_STATE_RUNNING


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str], registry: str) -> AsyncIterator[Client]:
    async with running_trainer(tmp_path, command, registry, parallel_jobs=2) as client:
        yield client


async def create(client: Client, model: str, alias: str = "", **fields: Any) -> pb.Study:
    dataset = await client.upload()
    asked: dict[str, Any] = {
        "spec": spec(dataset.name, model, alias=alias),
        "parameters": [RATE],
        "max_trials": 4,
        "pruner": pb.PRUNER_NONE,
    }
    study = pb.Study(**asked | fields)
    request = pb.CreateStudyRequest(parent="tenants/default", study=study)
    return (await client.studies.CreateStudy(request, metadata=client.metadata)).study


async def events(client: Client, name: str, token: str = "") -> list[pb.WatchStudyResponse]:
    request = pb.WatchStudyRequest(name=name, resume_token=token)
    async with asyncio.timeout(60):
        watch = client.studies.WatchStudy(request, metadata=client.metadata)
        return [event async for event in watch]


async def end(client: Client, study: pb.Study) -> pb.Study:
    return (await events(client, study.name))[-1].study


async def trials(client: Client, study: pb.Study, **page: Any) -> Sequence[pb.Trial]:
    request = pb.ListTrialsRequest(parent=study.name, **page)
    return (await client.studies.ListTrials(request, metadata=client.metadata)).trials


async def first_trial(client: Client, study: pb.Study) -> pb.Trial:
    """The first trial that is seen to run."""
    async with asyncio.timeout(30):
        async for event in client.studies.WatchStudy(pb.WatchStudyRequest(name=study.name)):
            if event.trial.training_job:
                return event.trial
    raise AssertionError("the study ended before")


async def test_the_best_trial_is_published_as_it_was_proven(
    client: Client, registry: str, tmp_path: Path
) -> None:
    study = await create(client, "learns-best", "production", parallel_trials=2)
    ended = await end(client, study)
    assert ended.state == pb.STUDY_STATE_SUCCEEDED, ended.error
    assert ended.version == "tenants/default/models/learns-best/versions/1"
    board = await trials(client, study)
    assert [trial.number for trial in board] == [1, 2, 3, 4]
    assert {trial.state for trial in board} == {pb.TRIAL_STATE_COMPLETED}
    by_rank = sorted(board, key=lambda trial: trial.rank)
    assert [trial.rank for trial in by_rank] == [1, 2, 3, 4]
    assert [trial.value for trial in by_rank] == sorted(trial.value for trial in board)
    assert (ended.best_trial, ended.trial_count) == (by_rank[0], 4)
    published = await client.get(ended.publication_job)
    assert published.outcome_of == by_rank[0].training_job
    assert published.spec.training.learning_rate == float(by_rank[0].assignments[0].value)
    async with registry_client(registry) as stub:
        alias = registry_pb2.GetAliasRequest(
            name="tenants/default/models/learns-best/aliases/production"
        )
        assert (await stub.GetAlias(alias)).alias.version == ended.version
    await until(lambda: not list(tmp_path.glob("jobs/*/*/bundle")))


async def test_trials_are_jobs_without_publication(client: Client) -> None:
    study = await create(client, "learns-jobs", max_trials=1, priority=80)
    await end(client, study)
    (trial,) = await trials(client, study)
    job = await client.get(trial.training_job)
    assert (job.study, job.state, job.priority) == (study.name, SUCCEEDED, 80)
    assert job.without_publication


async def test_a_study_may_publish_nothing(client: Client) -> None:
    study = await create(client, "learns-quietly", max_trials=1, without_publication=True)
    ended = await end(client, study)
    assert (ended.state, ended.version) == (pb.STUDY_STATE_SUCCEEDED, "")
    assert ended.best_trial.number == 1


@pytest.mark.slow
async def test_a_trial_without_promise_is_stopped(client: Client) -> None:
    rates = pb.Choices(values=["0.01", "0.0001"])
    parameters = [{"path": "training.learning_rate", "choices": rates}]
    study = await create(
        client,
        "learns-pruned",
        parameters=parameters,
        max_trials=8,
        pruner=pb.PRUNER_ASHA,
        sampler=pb.SAMPLER_RANDOM,
        without_publication=True,
    )
    ended = await end(client, study)
    board = await trials(client, study)
    assert ended.best_trial.assignments[0].value == "0.01"
    pruned = [trial for trial in board if trial.state == pb.TRIAL_STATE_PRUNED]
    assert pruned
    assert all(trial.epoch < 3 for trial in pruned)
    job = await client.get(pruned[0].training_job)
    assert job.state == CANCELLED


@pytest.mark.slow
async def test_the_same_seed_makes_the_same_trials(client: Client) -> None:
    boards = []
    for _ in range(2):
        study = await create(
            client, "learns-seeded", seed=7, max_trials=3, without_publication=True
        )
        await end(client, study)
        boards.append([list(trial.assignments) for trial in await trials(client, study)])
    assert boards[0] == boards[1]
    assert boards[0][0] != boards[0][1]


@pytest.mark.slow
async def test_values_that_contradict_each_other_fail_their_trial_alone(client: Client) -> None:
    parameters = [
        RATE,
        {"path": "training.max_epochs", "choices": {"values": ["2", "40"]}},
        {"path": "training.warmup_epochs", "integers": {"low": 0, "high": 20}},
    ]
    study = await create(client, "learns-odd", parameters=parameters, max_trials=8, seed=1)
    ended = await end(client, study)
    board = await trials(client, study)
    failed = [trial for trial in board if trial.state == pb.TRIAL_STATE_FAILED]
    assert ended.state == pb.STUDY_STATE_SUCCEEDED
    assert failed
    assert failed[0].error.reason == reasons.ERROR_REASON_FIELD_INVALID
    assert not failed[0].training_job


@pytest.mark.slow
async def test_a_study_none_of_whose_trials_completes_fails(client: Client) -> None:
    ended = await end(client, await create(client, "refuses", max_trials=2))
    assert ended.state == pb.STUDY_STATE_FAILED
    assert ended.error.reason == reasons.ERROR_REASON_STUDY_FAILED


@pytest.mark.slow
async def test_trials_that_only_fail_end_a_study_early(client: Client) -> None:
    ended = await end(client, await create(client, "refuses", max_trials=500, parallel_trials=2))
    assert ended.trial_count < 15


@pytest.mark.slow
async def test_a_study_ends_in_time_with_the_best_so_far(client: Client) -> None:
    study = await create(client, "learns-timed", max_trials=0, max_duration_s=3)
    ended = await end(client, study)
    assert ended.state == pb.STUDY_STATE_SUCCEEDED, ended.error
    assert ended.best_trial.rank == 1
    assert not [trial for trial in await trials(client, study) if trial.state == RUNNING]


async def test_a_cancelled_study_cancels_its_trials(client: Client) -> None:
    study = await create(client, "hangs", max_trials=9, parallel_trials=4)
    await client.pid((await first_trial(client, study)).training_job)
    await client.studies.CancelStudy(pb.CancelStudyRequest(name=study.name))
    assert (await end(client, study)).state == pb.STUDY_STATE_CANCELLED
    board = await trials(client, study)
    assert {trial.state for trial in board} == {pb.TRIAL_STATE_CANCELLED}
    for trial in board:
        assert (await client.get(trial.training_job)).state == CANCELLED
    again = client.studies.CancelStudy(pb.CancelStudyRequest(name=study.name))
    error = await failure(again)
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "ERROR_REASON_STUDY_ENDED"


@pytest.mark.slow
async def test_a_trial_may_be_cancelled_alone(client: Client) -> None:
    study = await create(client, "hangs", max_trials=2)
    trial = await first_trial(client, study)
    await client.pid(trial.training_job)
    await client.cancel(trial.training_job)
    await client.studies.CancelStudy(pb.CancelStudyRequest(name=study.name))
    await end(client, study)
    assert (await trials(client, study))[0].state == pb.TRIAL_STATE_CANCELLED


@pytest.mark.slow
async def test_a_watch_continues_behind_any_token(client: Client) -> None:
    study = await create(client, "learns-watched", max_trials=2, without_publication=True)
    await end(client, study)
    seen = await events(client, study.name)
    for number, event in enumerate(seen, start=1):
        assert await events(client, study.name, event.resume_token) == seen[number:]


@pytest.mark.slow
async def test_a_study_goes_on_after_its_trainer_was_killed(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, registry: str
) -> None:
    directory = tmp_path_factory.mktemp("t")  # Short: it holds a socket.
    async with killable_trainer(directory, bundle, registry) as (client, process):
        study = await create(client, "learns-on", max_trials=4, seed=3)
        await client.until((await first_trial(client, study)).training_job, SUCCEEDED)
        process.kill()
    async with killable_trainer(directory, bundle, registry) as (client, _):
        ended = await end(client, study)
        assert ended.state == pb.STUDY_STATE_SUCCEEDED, ended.error
        board = await trials(client, study)
    assert [trial.number for trial in board] == [1, 2, 3, 4]
    assert len({trial.assignments[0].value for trial in board}) == 4


async def test_a_trial_that_does_not_tell_the_metric_fails(client: Client) -> None:
    study = await create(
        client, "succeeds-blindly", max_trials=1, metric=pb.STUDY_METRIC_VALIDATION_ACCURACY
    )
    await end(client, study)
    (trial,) = await trials(client, study)
    assert trial.state == pb.TRIAL_STATE_FAILED
    assert trial.error.reason == reasons.ERROR_REASON_STUDY_FAILED

"""The logs of jobs over the wire: kept after the end, told live before it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.jobs import SUCCEEDED
from tests.trainer.service import Client, failure, running_trainer


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str]) -> AsyncIterator[Client]:
    async with running_trainer(tmp_path, command) as client:
        yield client


async def logs(
    client: Client, name: str, token: str = "", *, follow: bool = False
) -> list[pb.StreamTrainingJobLogsResponse]:
    request = pb.StreamTrainingJobLogsRequest(name=name, resume_token=token, follow=follow)
    call = client.jobs.StreamTrainingJobLogs(request, metadata=client.metadata)
    async with asyncio.timeout(30):
        return [response async for response in call]


def text(responses: Sequence[pb.StreamTrainingJobLogsResponse]) -> bytes:
    return b"".join(response.chunk for response in responses)


async def test_a_log_is_kept_after_the_end(client: Client) -> None:
    job = await client.train("succeeds-logged", {"without_publication": True})
    assert (await client.end(job.name)).state == SUCCEEDED
    assert text(await logs(client, job.name)) == b"trains succeeds-logged\n"


async def test_all_attempts_write_one_log(client: Client) -> None:
    job = await client.train("dies-1", {"without_publication": True})
    await client.end(job.name)
    assert text(await logs(client, job.name)) == b"trains dies-1\n" * 2


async def test_following_ends_with_the_job(client: Client) -> None:
    job = await client.train("hangs")
    following = asyncio.create_task(logs(client, job.name, follow=True))
    await client.pid(job.name)
    await client.cancel(job.name)
    assert text(await following) == b"trains hangs\n"


async def test_a_queued_job_has_an_empty_log(client: Client) -> None:
    await client.train("hangs")
    job = await client.train("succeeds-queued")
    assert await logs(client, job.name) == []


async def test_a_stream_continues_behind_a_token(client: Client) -> None:
    job = await client.train("succeeds-on", {"without_publication": True})
    await client.end(job.name)
    last = (await logs(client, job.name))[-1].resume_token
    assert await logs(client, job.name, last, follow=True) == []
    middle = f"{last.rpartition(':')[0]}:7"
    assert text(await logs(client, job.name, middle)) == b"succeeds-on\n"


async def test_logs_of_others_and_of_none_are_refused(client: Client) -> None:
    job = await client.train("hangs")
    error = await failure(logs(client.key("acme", read=["*"]), job.name))
    assert error.reason == "ERROR_REASON_PERMISSION_DENIED"
    error = await failure(logs(client, "tenants/default/trainingJobs/none"))
    assert error.reason == "ERROR_REASON_TRAINING_JOB_NOT_FOUND"
    error = await failure(logs(client, job.name, "else:7"))
    assert error.metadata["field"] == "resume_token"

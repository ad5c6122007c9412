"""TrainingService through a real channel: what is refused before anything is queued."""

import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.jobs import CANCELLED, QUEUED, RUNNING
from tests.trainer.service import CSV, Client, failure, running_trainer, spec

NO_JOB = "tenants/default/trainingJobs/none"


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str]) -> AsyncIterator[Client]:
    async with running_trainer(tmp_path, command) as client:
        yield client


@pytest.fixture
async def dataset(client: Client) -> str:
    return (await client.upload()).name


async def jobs(client: Client, **fields: Any) -> pb.ListTrainingJobsResponse:
    request = pb.ListTrainingJobsRequest(**{"parent": "tenants/default"} | fields)
    return await client.jobs.ListTrainingJobs(request, metadata=client.metadata)


async def test_a_job_is_answered_as_queued(client: Client, dataset: str) -> None:
    asked = spec(dataset, "hangs")
    job = await client.create(asked)
    assert (job.state, job.attempt, job.spec) == (QUEUED, 0, asked)
    assert job.name.startswith("tenants/default/trainingJobs/")
    assert job.HasField("create_time")


def change(asked: pb.TrainingSpec, **fields: Any) -> pb.TrainingSpec:
    changed = pb.TrainingSpec(**fields)
    asked.MergeFrom(changed)
    return asked


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"dataset": "x"}, "training_job.spec.dataset", id="dataset"),
        pytest.param(
            {"dataset": f"tenants/acme/datasets/{'0' * 64}"},
            "training_job.spec.dataset",
            id="dataset of another tenant",
        ),
        pytest.param(
            {"publication": {"model": "tenants/acme/models/hangs"}},
            "training_job.spec.publication.model",
            id="model of another tenant",
        ),
        pytest.param(
            {"publication": {"model": "tenants/default/models/../x"}},
            "training_job.spec.publication.model",
            id="model name",
        ),
        pytest.param(
            {"publication": {"alias": "Production"}},
            "training_job.spec.publication.alias",
            id="alias",
        ),
        pytest.param(
            {"training": {"learning_rate": float("nan")}},
            "training_job.spec.training.learning_rate",
            id="no number",
        ),
        pytest.param(
            {"training": {"max_epochs": -1}}, "training_job.spec.training.max_epochs", id="range"
        ),
        pytest.param(
            {"image_classification": {}}, "training_job.spec.dataset", id="task of another format"
        ),
    ],
)
async def test_a_malformed_spec_is_refused(
    client: Client, dataset: str, changes: dict[str, Any], field: str
) -> None:
    error = await failure(client.create(change(spec(dataset, "hangs"), **changes)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata["field"] == field
    assert not (await jobs(client)).training_jobs


@pytest.mark.parametrize(
    ("content", "task", "problem"),
    [
        pytest.param(b"x,kind\n1,a\n2,a\n", {}, "ONE_CLASS", id="one class"),
        pytest.param(b"x,kind\n1,a\n2,b\n3,c\n", {}, "RARE_CLASS", id="a class for each row"),
        pytest.param(CSV.replace(b"\n5,", b"\n,"), {}, "MISSING_VALUE", id="missing value"),
        pytest.param(CSV.replace(b"\n5,", b"\nfive,"), {}, "NOT_A_NUMBER", id="text"),
        pytest.param(CSV + b"5,5,odd\n", {}, "DUPLICATE_ROW", id="duplicate"),
        pytest.param(CSV, {"target": "class"}, "MISSING_COLUMN", id="no such column"),
    ],
)
async def test_data_that_cannot_be_trained_on_is_refused_at_once(
    client: Client, tmp_path: Path, content: bytes, task: dict[str, Any], problem: str
) -> None:
    dataset = await client.upload(content)
    for validate_only in (False, True):
        asked = spec(dataset.name, "hangs", **task)
        error = await failure(client.create(asked, validate_only=validate_only))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.reason == "ERROR_REASON_DATASET_INVALID"
        assert error.metadata["problem"] == problem
        assert str(tmp_path) not in error.message
    assert not (await jobs(client)).training_jobs


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        pytest.param({"priority": 101}, "priority", id="priority"),
        pytest.param({"resources": {"cores": 4096}}, "resources.cores", id="cores"),
        pytest.param({"resources": {"memory_bytes": 2**60}}, "resources.memory_bytes", id="memory"),
        pytest.param({"resources": {"cores": -1}}, "resources.cores", id="fewer than no cores"),
        pytest.param({"deadline_s": float("nan")}, "deadline_s", id="deadline"),
        pytest.param({"deadline_s": 1e9}, "deadline_s", id="deadline in another life"),
        pytest.param({"max_attempts": 11}, "max_attempts", id="attempts"),
        pytest.param({"resume_from": "x"}, "resume_from", id="job to resume"),
        pytest.param(
            {"resume_from": "tenants/acme/trainingJobs/x"}, "resume_from", id="of another tenant"
        ),
    ],
)
async def test_terms_that_cannot_be_kept_are_refused(
    client: Client, dataset: str, terms: dict[str, Any], field: str
) -> None:
    error = await failure(client.create(spec(dataset, "hangs"), terms=terms))
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata["field"] == f"training_job.{field}"


async def test_a_job_says_what_it_gets(client: Client, dataset: str) -> None:
    job = await client.create(spec(dataset, "hangs"), validate_only=True)
    assert (job.priority, job.max_attempts) == (50, 3)
    assert job.resources.cores >= 1
    assert job.resources.memory_bytes > 1024**3


async def test_only_a_job_that_stopped_with_the_same_spec_is_resumed(
    client: Client, dataset: str
) -> None:
    error = await failure(client.create(spec(dataset, "hangs"), terms={"resume_from": NO_JOB}))
    assert error.reason == "ERROR_REASON_TRAINING_JOB_NOT_FOUND"
    running = await client.create(spec(dataset, "hangs"))
    resumes = {"resume_from": running.name}
    error = await failure(client.create(running.spec, terms=resumes))
    assert error.metadata["field"] == "training_job.resume_from"
    await client.cancel(running.name)
    error = await failure(client.create(spec(dataset, "hangs-on"), terms=resumes))
    assert error.metadata["field"] == "training_job.resume_from"


async def test_who_may_not_publish_may_train_without(client: Client, dataset: str) -> None:
    key = client.key(train=["*"])
    assert (await failure(key.create(spec(dataset, "hangs")))).code is (
        grpc.StatusCode.PERMISSION_DENIED
    )
    await key.create(spec(dataset, "hangs"), terms={"without_publication": True})


async def test_a_dataset_must_exist(client: Client) -> None:
    missing = f"tenants/default/datasets/{'0' * 64}"
    error = await failure(client.create(spec(missing, "hangs")))
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "ERROR_REASON_DATASET_NOT_FOUND"


async def test_validate_only_creates_nothing(client: Client, dataset: str) -> None:
    asked = spec(dataset, "hangs")
    job = await client.create(asked, validate_only=True, request_id=str(uuid.uuid4()))
    assert (job.name, job.state, job.spec) == ("", QUEUED, asked)
    assert not (await jobs(client)).training_jobs


async def test_a_repeated_request_creates_one_job(client: Client, dataset: str) -> None:
    request_id = str(uuid.uuid4())
    job = await client.create(spec(dataset, "hangs"), request_id=request_id)
    assert await client.create(spec(dataset, "hangs"), request_id=request_id.upper()) == job
    error = await failure(client.create(spec(dataset, "exits"), request_id=request_id))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_REQUEST_ID_REUSED"
    assert error.metadata == {"request_id": request_id}
    malformed = await failure(client.create(spec(dataset, "hangs"), request_id="mine"))
    assert malformed.metadata["field"] == "request_id"
    assert len((await jobs(client)).training_jobs) == 1


async def test_pages_go_from_the_newest_to_the_oldest(client: Client, dataset: str) -> None:
    names = [(await client.create(spec(dataset, "hangs"))).name for _ in range(3)]
    first = await jobs(client, page_size=2)
    second = await jobs(client, page_size=2, page_token=first.next_page_token)
    listed = [job.name for job in (*first.training_jobs, *second.training_jobs)]
    assert listed == names[::-1]
    error = await failure(jobs(client, parent="tenants/acme", page_token=first.next_page_token))
    assert error.metadata["field"] == "page_token"


async def test_a_job_that_is_not_there(client: Client) -> None:
    for call in (client.get(NO_JOB), client.cancel(NO_JOB), client.watch(NO_JOB).read()):
        error = await failure(call)
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert error.reason == "ERROR_REASON_TRAINING_JOB_NOT_FOUND"
        assert error.metadata == {"name": NO_JOB}
    for call in (client.get("x"), client.cancel("x"), client.watch("x").read()):
        assert (await failure(call)).reason == "ERROR_REASON_FIELD_INVALID"
    error = await failure(client.watch(NO_JOB, "token").read())
    assert error.metadata["field"] == "resume_token"


async def test_a_job_is_cancelled_once(client: Client) -> None:
    job = await client.train("hangs")
    await client.pid(job.name)
    assert (await client.cancel(job.name)).state == RUNNING
    assert (await client.end(job.name)).state == CANCELLED
    error = await failure(client.cancel(job.name))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "ERROR_REASON_TRAINING_JOB_ENDED"
    assert error.metadata == {"name": job.name, "state": "TRAINING_JOB_STATE_CANCELLED"}


FULL = {"train": ["m*"], "publish": ["m*"], "promote": ["m*"]}


@pytest.mark.parametrize(
    ("permissions", "missing"),
    [
        pytest.param({"read": ["*"], "infer": ["*"], "admin": ["*"]}, "train", id="nothing"),
        pytest.param(FULL | {"train": ["other"]}, "train", id="may train another model"),
        pytest.param(FULL | {"publish": ["other"]}, "publish", id="may publish another model"),
        pytest.param(FULL | {"promote": []}, "promote", id="may not promote"),
    ],
)
async def test_creating_needs_every_right_the_outcome_needs(
    client: Client, dataset: str, permissions: dict[str, Any], missing: str
) -> None:
    key = client.key(**permissions)
    error = await failure(key.create(spec(dataset, "my", alias="production")))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert error.metadata["verb"] == missing


async def test_a_job_without_an_alias_needs_no_promote(client: Client, dataset: str) -> None:
    key = client.key(train=["hangs"], publish=["hangs"])
    job = await key.create(spec(dataset, "hangs"))
    await key.get(job.name)
    await key.cancel(job.name)


async def test_who_may_see_a_job_may_not_stop_it(client: Client) -> None:
    job = await client.train("hangs")
    reads, trains_another = client.key(read=["*"]), client.key(train=["another"])
    foreign = client.key("acme", train=["*"], read=["*"])
    await reads.get(job.name)
    await reads.watch(job.name).read()
    await jobs(reads)
    for denied in (
        reads.cancel(job.name),
        trains_another.cancel(job.name),
        foreign.cancel(job.name),
        foreign.cancel(NO_JOB),
        foreign.get(job.name),
        foreign.watch(job.name).read(),
        jobs(foreign),
    ):
        assert (await failure(denied)).code is grpc.StatusCode.PERMISSION_DENIED

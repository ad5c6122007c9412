"""TuningService through a real channel: what is refused before any trial is made."""

import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from servery.trainer.v1 import tuning_pb2 as pb
from tests.trainer.service import Client, failure, running_trainer, spec

NO_STUDY = "tenants/default/studies/none"
RATE = {"path": "training.learning_rate", "floats": {"low": 0.001, "high": 0.1}}


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str]) -> AsyncIterator[Client]:
    async with running_trainer(tmp_path, command) as client:
        yield client


@pytest.fixture
async def dataset(client: Client) -> str:
    return (await client.upload()).name


def asked(dataset: str, **fields: Any) -> pb.Study:
    given: dict[str, Any] = {
        "spec": spec(dataset, "hangs"),
        "parameters": [RATE],
        "max_trials": 3,
    }
    return pb.Study(**given | fields)


async def create(client: Client, study: pb.Study, **fields: Any) -> pb.Study:
    request = pb.CreateStudyRequest(parent="tenants/default", study=study, **fields)
    return (await client.studies.CreateStudy(request, metadata=client.metadata)).study


async def listed(client: Client, **fields: Any) -> pb.ListStudiesResponse:
    request = pb.ListStudiesRequest(**{"parent": "tenants/default"} | fields)
    return await client.studies.ListStudies(request, metadata=client.metadata)


async def test_a_study_is_answered_with_its_defaults(client: Client, dataset: str) -> None:
    study = await create(client, asked(dataset))
    assert study.name.startswith("tenants/default/studies/")
    assert (study.state, study.sampler, study.pruner, study.metric) == (
        pb.STUDY_STATE_RUNNING,
        pb.SAMPLER_TPE,
        pb.PRUNER_MEDIAN,
        pb.STUDY_METRIC_VALIDATION_LOSS,
    )
    assert (study.parallel_trials, study.priority) == (1, 50)
    assert study.resources.cores >= 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"max_trials": 0}, "max_trials", id="no end"),
        pytest.param({"max_trials": 1001}, "max_trials", id="trials"),
        pytest.param({"max_duration_s": -1}, "max_duration_s", id="duration"),
        pytest.param({"parallel_trials": 65}, "parallel_trials", id="parallel"),
        pytest.param({"priority": 101}, "priority", id="priority"),
        pytest.param({"trial_deadline_s": -1}, "trial_deadline_s", id="deadline"),
        pytest.param({"resources": {"cores": 4096}}, "resources.cores", id="cores"),
        pytest.param({"sampler": 9}, "sampler", id="sampler"),
        pytest.param({"parameters": []}, "parameters", id="parameters"),
        pytest.param({"spec": spec("x", "hangs")}, "spec.dataset", id="spec"),
    ],
)
async def test_a_study_that_cannot_work_is_refused(
    client: Client, dataset: str, fields: dict[str, Any], field: str
) -> None:
    error = await failure(create(client, asked(dataset, **fields)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == f"study.{field}"
    assert not (await listed(client)).studies


@pytest.mark.parametrize("task", ["tabular_regression", "tabular_multi_label"])
async def test_accuracy_is_a_metric_of_classes_only(
    client: Client, dataset: str, task: str
) -> None:
    numbers = spec(dataset, "hangs")
    numbers.ClearField("tabular_classification")
    field = "target" if task == "tabular_regression" else "targets"
    json_format.ParseDict({task: {field: "x" if field == "target" else ["x"]}}, numbers)
    study = asked(dataset, spec=numbers, metric=pb.STUDY_METRIC_VALIDATION_ACCURACY)
    error = await failure(create(client, study))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == "study.metric"


async def test_data_that_cannot_be_trained_on_is_refused_at_once(client: Client) -> None:
    dataset = await client.upload(b"x,kind\n1,a\n2,a\n")
    error = await failure(create(client, asked(dataset.name)))
    assert error.reason == "ERROR_REASON_DATASET_INVALID"


async def test_a_repeated_request_makes_one_study(client: Client, dataset: str) -> None:
    request_id = str(uuid.uuid4())
    first = await create(client, asked(dataset), request_id=request_id)
    again = await create(client, asked(dataset), request_id=request_id.upper())
    assert again.name == first.name
    error = await failure(create(client, asked(dataset, seed=1), request_id=request_id))
    assert error.reason == "ERROR_REASON_REQUEST_ID_REUSED"
    assert [study.name for study in (await listed(client)).studies] == [first.name]


async def test_a_rehearsal_makes_none(client: Client, dataset: str) -> None:
    study = await create(client, asked(dataset), validate_only=True)
    assert not study.name
    assert not (await listed(client)).studies


async def test_pages_go_from_the_newest_to_the_oldest(client: Client, dataset: str) -> None:
    names = [(await create(client, asked(dataset, seed=seed))).name for seed in range(3)]
    first = await listed(client, page_size=2)
    second = await listed(client, page_size=2, page_token=first.next_page_token)
    got = [study.name for study in (*first.studies, *second.studies)]
    assert got == names[::-1]
    assert not second.next_page_token


async def test_what_does_not_exist_is_said(client: Client) -> None:
    for call in (
        client.studies.GetStudy(pb.GetStudyRequest(name=NO_STUDY)),
        client.studies.CancelStudy(pb.CancelStudyRequest(name=NO_STUDY)),
        client.studies.ListTrials(pb.ListTrialsRequest(parent=NO_STUDY)),
        client.studies.WatchStudy(pb.WatchStudyRequest(name=NO_STUDY)).read(),
    ):
        assert (await failure(call)).reason == "ERROR_REASON_STUDY_NOT_FOUND"


async def test_who_may_see_a_study_may_not_make_or_stop_one(client: Client, dataset: str) -> None:
    study = await create(client, asked(dataset))
    reads, trains = client.key(read=["*"]), client.key(train=["*"])
    foreign = client.key("acme", train=["*"], read=["*"])
    get, cancel = pb.GetStudyRequest(name=study.name), pb.CancelStudyRequest(name=study.name)
    await reads.studies.GetStudy(get, metadata=reads.metadata)
    for denied in (
        create(reads, asked(dataset)),
        create(trains, asked(dataset)),  # It would publish.
        reads.studies.CancelStudy(cancel, metadata=reads.metadata),
        foreign.studies.GetStudy(get, metadata=foreign.metadata),
        foreign.studies.CancelStudy(cancel, metadata=foreign.metadata),
        listed(foreign),
    ):
        assert (await failure(denied)).code is grpc.StatusCode.PERMISSION_DENIED
    await create(trains, asked(dataset, without_publication=True))
    await trains.studies.CancelStudy(cancel, metadata=trains.metadata)

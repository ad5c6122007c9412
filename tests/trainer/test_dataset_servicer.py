"""DatasetService through a real channel: uploads arrive whole or not at all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery.trainer.v1 import dataset_pb2 as pb
from tests.trainer.service import CSV, ROWS, Client, failure, running_trainer, until

LIMIT = 100_000


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str]) -> AsyncIterator[Client]:
    async with running_trainer(tmp_path, command, max_dataset_bytes=LIMIT) as client:
        yield client


def files(directory: Path) -> list[Path]:
    return [path for path in (directory / "datasets").rglob("*") if path.is_file()]


async def datasets(client: Client, **fields: Any) -> pb.ListDatasetsResponse:
    request = pb.ListDatasetsRequest(**{"parent": "tenants/default"} | fields)
    return await client.datasets.ListDatasets(request, metadata=client.metadata)


async def test_a_file_becomes_a_dataset_named_by_its_bytes(client: Client, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CSV).hexdigest()
    dataset = await client.upload(display_name="kinds.csv", sha256=sha256)
    assert dataset.name == f"tenants/default/datasets/{sha256}"
    assert (dataset.display_name, dataset.size_bytes) == ("kinds.csv", len(CSV))
    assert dataset.row_count == ROWS
    assert [column.name for column in dataset.columns] == ["x", "y", "kind"]
    assert dataset.HasField("create_time")
    request = pb.GetDatasetRequest(name=dataset.name)
    assert (await client.datasets.GetDataset(request)).dataset == dataset
    assert [file.read_bytes() for file in files(tmp_path)] == [CSV]


async def test_the_same_bytes_are_the_same_dataset(client: Client, tmp_path: Path) -> None:
    first, *others = await asyncio.gather(*(client.upload(display_name=c) for c in "abcd"))
    assert all(other == first for other in others)
    assert await client.upload(display_name="later") == first
    assert len((await datasets(client)).datasets) == len(files(tmp_path)) == 1


async def test_a_table_may_be_json_lines(client: Client) -> None:
    lines = b'{"day": "2024-02-29", "ok": true}\n{"day": null, "ok": false}\n'
    dataset = await client.upload(lines, format=pb.DATASET_FORMAT_JSON_LINES)
    assert dataset.row_count == 2
    day, ok = dataset.columns
    assert (day.type, day.missing_count) == (pb.COLUMN_TYPE_DATE, 1)
    assert ok.type == pb.COLUMN_TYPE_BOOLEAN


async def test_tenants_do_not_share_datasets(client: Client) -> None:
    dataset = await client.upload(parent="tenants/acme")
    assert dataset.name.startswith("tenants/acme/")
    assert not (await datasets(client)).datasets


@pytest.mark.parametrize(
    ("content", "header", "reason", "metadata"),
    [
        pytest.param(
            CSV, {"parent": "x"}, "FIELD_INVALID", {"field": "header.parent"}, id="parent"
        ),
        pytest.param(CSV, {"format": 0}, "FIELD_INVALID", {"field": "header.format"}, id="format"),
        pytest.param(CSV, {"format": 9}, "FIELD_INVALID", {"field": "header.format"}, id="future"),
        pytest.param(
            CSV,
            {"column_types": {"x": 9}},
            "FIELD_INVALID",
            {"field": "header.column_types[x]"},
            id="type",
        ),
        pytest.param(
            CSV,
            {"column_types": {"kind": pb.COLUMN_TYPE_NUMERIC}},
            "DATASET_INVALID",
            {"problem": "NOT_A_NUMBER", "row": "1", "column": "kind"},
            id="cells of another type",
        ),
        pytest.param(CSV, {"sha256": "A" * 64}, "FIELD_INVALID", {}, id="malformed digest"),
        pytest.param(CSV, {"display_name": "n" * 201}, "FIELD_INVALID", {}, id="long name"),
        pytest.param(
            CSV, {"sha256": "0" * 64}, "DIGEST_MISMATCH", {"declared": "0" * 64}, id="other bytes"
        ),
        pytest.param(
            b"x" * (LIMIT + 1), {}, "UPLOAD_TOO_LARGE", {"limit_bytes": str(LIMIT)}, id="large"
        ),
        pytest.param(b"", {}, "DATASET_INVALID", {"problem": "EMPTY"}, id="no bytes"),
        pytest.param(b"a,b\n", {}, "DATASET_INVALID", {"problem": "EMPTY"}, id="no rows"),
        pytest.param(
            b"a,b\n1,2\n3\n",
            {},
            "DATASET_INVALID",
            {"problem": "RAGGED_ROW", "row": "2"},
            id="ragged",
        ),
        pytest.param(
            b"a,a\n1,2\n", {}, "DATASET_INVALID", {"problem": "DUPLICATE_COLUMN"}, id="columns"
        ),
        pytest.param(
            CSV,
            {"format": pb.DATASET_FORMAT_NPZ},
            "DATASET_INVALID",
            {"problem": "MALFORMED"},
            id="no archive",
        ),
    ],
)
async def test_a_bad_upload_is_refused_and_leaves_nothing(
    client: Client,
    tmp_path: Path,
    content: bytes,
    header: dict[str, Any],
    reason: str,
    metadata: dict[str, str],
) -> None:
    error = await failure(client.upload(content, **header))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == f"ERROR_REASON_{reason}"
    assert metadata.items() <= error.metadata.items()
    assert str(tmp_path) not in error.message
    assert not files(tmp_path)
    assert not (await datasets(client)).datasets


async def test_stored_bytes_keep_their_format_and_types(client: Client) -> None:
    types = {"y": pb.COLUMN_TYPE_TEXT}
    dataset = await client.upload(column_types=types)
    assert [(column.type, column.declared) for column in dataset.columns][:2] == [
        (pb.COLUMN_TYPE_NUMERIC, False),
        (pb.COLUMN_TYPE_TEXT, True),
    ]
    assert await client.upload(column_types=types) == await client.upload() == dataset
    error = await failure(client.upload(format=pb.DATASET_FORMAT_NPZ))
    assert error.metadata["field"] == "header.format"
    error = await failure(client.upload(column_types={"x": pb.COLUMN_TYPE_TEXT}))
    assert error.metadata["field"] == "header.column_types[x]"


async def test_a_tenant_of_any_name_keeps_its_datasets(
    tmp_path: Path, command: Sequence[str]
) -> None:
    for name in ("staging", "uploads"):
        async with running_trainer(tmp_path, command) as client:
            await client.upload(parent=f"tenants/{name}")
    async with running_trainer(tmp_path, command):
        assert len(files(tmp_path)) == 2


HEADER = pb.CreateDatasetRequest(
    header=pb.CreateDatasetRequest.Header(parent="tenants/default", format=pb.DATASET_FORMAT_CSV)
)
CHUNK = pb.CreateDatasetRequest(chunk=CSV)


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([], id="nothing"),
        pytest.param([CHUNK], id="no header"),
        pytest.param([HEADER, CHUNK, HEADER], id="two headers"),
        pytest.param([HEADER, pb.CreateDatasetRequest()], id="an empty part"),
        pytest.param([HEADER, pb.CreateDatasetRequest(chunk=bytes(2**20 + 1))], id="a huge chunk"),
    ],
)
async def test_the_order_of_parts_is_kept(
    client: Client, tmp_path: Path, requests: list[pb.CreateDatasetRequest]
) -> None:
    error = await failure(client.datasets.CreateDataset(iter(requests)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert not files(tmp_path)


async def test_a_stream_that_breaks_off_leaves_nothing(client: Client, tmp_path: Path) -> None:
    call: Any = client.datasets.CreateDataset()
    await call.write(HEADER)
    await call.write(CHUNK)
    await until(lambda: bool(files(tmp_path)))
    call.cancel()
    await until(lambda: not files(tmp_path))
    assert not (await datasets(client)).datasets


async def test_what_a_crash_left_half_uploaded_is_removed(
    tmp_path: Path, command: Sequence[str]
) -> None:
    staging = tmp_path / "datasets" / ".staging"
    staging.mkdir(parents=True)
    (staging / "half").write_bytes(b"a,b")
    async with running_trainer(tmp_path, command):
        assert not files(tmp_path)


async def test_datasets_outlive_the_trainer(tmp_path: Path, command: Sequence[str]) -> None:
    async with running_trainer(tmp_path, command) as client:
        dataset = await client.upload()
    async with running_trainer(tmp_path, command) as client:
        request = pb.GetDatasetRequest(name=dataset.name)
        assert (await client.datasets.GetDataset(request)).dataset == dataset


async def test_pages_go_from_the_newest_to_the_oldest(client: Client) -> None:
    names = [(await client.upload(f"a\n{number}\n".encode())).name for number in range(3)]
    first = await datasets(client, page_size=2)
    second = await datasets(client, page_size=2, page_token=first.next_page_token)
    assert [d.name for d in (*first.datasets, *second.datasets)] == names[::-1]
    assert not second.next_page_token
    for fields in ({"page_size": -1}, {"page_token": "x"}, {"parent": "tenants"}):
        assert (await failure(datasets(client, **fields))).reason == "ERROR_REASON_FIELD_INVALID"
    other = datasets(client, parent="tenants/acme", page_token=first.next_page_token)
    assert (await failure(other)).metadata["field"] == "page_token"


async def test_a_dataset_that_is_not_there(client: Client) -> None:
    name = f"tenants/default/datasets/{'0' * 64}"
    error = await failure(client.datasets.GetDataset(pb.GetDatasetRequest(name=name)))
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "ERROR_REASON_DATASET_NOT_FOUND"
    assert error.metadata == {"name": name}
    malformed = client.datasets.GetDataset(pb.GetDatasetRequest(name="../../secret"))
    assert (await failure(malformed)).reason == "ERROR_REASON_FIELD_INVALID"


async def test_a_key_needs_the_right_verb(client: Client) -> None:
    trains, reads = client.key(train=["a*"]), client.key(read=["b"])
    dataset = await trains.upload()
    for permitted in (trains, reads):
        request = pb.GetDatasetRequest(name=dataset.name)
        await permitted.datasets.GetDataset(request, metadata=permitted.metadata)
        await datasets(permitted)
    foreign, calls = client.key("acme", train=["*"], read=["*"]), client.key(infer=["*"])
    for denied in (
        reads.upload(),
        foreign.upload(),
        calls.upload(),
        datasets(foreign),
        datasets(calls),
    ):
        error = await failure(denied)
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        assert error.reason == "ERROR_REASON_PERMISSION_DENIED"

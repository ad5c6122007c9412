"""Uploads that break off and go on, through a real channel."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from servery.trainer.v1 import dataset_pb2 as pb
from tests.trainer.service import CSV, ROWS, Client, failure, running_trainer, until

SHA256 = hashlib.sha256(CSV).hexdigest()
NAME = f"tenants/default/uploads/{SHA256}"
HALF = len(CSV) // 2


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str]) -> AsyncIterator[Client]:
    async with running_trainer(
        tmp_path, command, max_dataset_bytes=100_000, max_uploads=2
    ) as client:
        yield client


def files(directory: Path) -> list[Path]:
    return [path for path in (directory / "datasets").rglob("*") if path.is_file()]


async def create(client: Client, content: bytes = CSV, **fields: Any) -> pb.Upload:
    given: dict[str, Any] = {
        "parent": "tenants/default",
        "format": pb.DATASET_FORMAT_CSV,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    header = pb.CreateDatasetRequest.Header(**given | fields)
    request = pb.CreateUploadRequest(header=header, size_bytes=len(content))
    return (await client.datasets.CreateUpload(request, metadata=client.metadata)).upload


async def get(client: Client, name: str = NAME) -> pb.Upload:
    request = pb.GetUploadRequest(name=name)
    return (await client.datasets.GetUpload(request, metadata=client.metadata)).upload


def parts(offset: int, chunks: Iterable[bytes], name: str = NAME) -> list[pb.AppendUploadRequest]:
    position = pb.AppendUploadRequest.Position(name=name, offset=offset)
    return [
        pb.AppendUploadRequest(position=position),
        *(pb.AppendUploadRequest(chunk=chunk) for chunk in chunks),
    ]


async def append(client: Client, offset: int, *chunks: bytes, name: str = NAME) -> pb.Upload:
    requests = iter(parts(offset, chunks, name))
    return (await client.datasets.AppendUpload(requests, metadata=client.metadata)).upload


async def complete(client: Client, name: str = NAME) -> pb.Dataset:
    request = pb.CompleteUploadRequest(name=name)
    return (await client.datasets.CompleteUpload(request, metadata=client.metadata)).dataset


async def delete(client: Client, name: str = NAME) -> None:
    request = pb.DeleteUploadRequest(name=name)
    await client.datasets.DeleteUpload(request, metadata=client.metadata)


class Open(NamedTuple):
    """A call that has sent its first half and does not end."""

    call: Any

    @classmethod
    async def begin(cls, client: Client, tmp_path: Path) -> "Open":
        call: Any = client.datasets.AppendUpload(metadata=client.metadata)
        for request in parts(0, [CSV[:HALF]]):
            await call.write(request)
        part = tmp_path / "datasets" / ".uploads" / "default" / SHA256 / "part"
        await until(lambda: part.stat().st_size == HALF)
        return cls(call)


async def test_an_upload_in_pieces_becomes_a_dataset(client: Client, tmp_path: Path) -> None:
    begun = await create(client, display_name="kinds.csv")
    assert (begun.name, begun.size_bytes, begun.received_bytes) == (NAME, len(CSV), 0)
    assert (await append(client, 0, CSV[:10], CSV[10:HALF])).received_bytes == HALF
    assert (await append(client, HALF, CSV[HALF:])).received_bytes == len(CSV)
    dataset = await complete(client)
    assert (dataset.name, dataset.row_count) == (f"tenants/default/datasets/{SHA256}", ROWS)
    assert dataset.display_name == "kinds.csv"
    assert [file.read_bytes() for file in files(tmp_path)] == [CSV]
    assert (await failure(get(client))).reason == "ERROR_REASON_UPLOAD_NOT_FOUND"


async def test_an_upload_goes_on_where_it_broke_off(client: Client, tmp_path: Path) -> None:
    await create(client)
    (await Open.begin(client, tmp_path)).call.cancel()
    assert (await create(client)).received_bytes == HALF
    await append(client, HALF, CSV[HALF:])
    assert (await complete(client)).row_count == ROWS


async def test_an_upload_outlives_the_trainer(tmp_path: Path, command: Sequence[str]) -> None:
    async with running_trainer(tmp_path, command) as client:
        await create(client)
        await append(client, 0, CSV[:HALF])
    async with running_trainer(tmp_path, command) as client:
        assert (await get(client)).received_bytes == HALF
        await append(client, HALF, CSV[HALF:])
        assert (await complete(client)).row_count == ROWS


async def test_the_latest_call_takes_over(client: Client, tmp_path: Path) -> None:
    await create(client)
    first = await Open.begin(client, tmp_path)
    await append(client, HALF, CSV[HALF:])
    await first.call.write(pb.AppendUploadRequest(chunk=b"more"))
    error = await failure(first.call)
    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason == "ERROR_REASON_UPLOAD_MOVED"
    assert (await complete(client)).row_count == ROWS


async def test_a_silent_call_is_ended_and_its_bytes_are_kept(
    tmp_path: Path, command: Sequence[str]
) -> None:
    async with running_trainer(tmp_path, command, upload_stall_s=0.5) as client:
        await create(client)
        error = await failure((await Open.begin(client, tmp_path)).call)
        assert error.code is grpc.StatusCode.ABORTED
        assert error.reason == "ERROR_REASON_UPLOAD_STALLED"
        assert (await get(client)).received_bytes == HALF
        call: Any = client.datasets.CreateDataset()
        header = pb.CreateDatasetRequest.Header(
            parent="tenants/default", format=pb.DATASET_FORMAT_CSV
        )
        await call.write(pb.CreateDatasetRequest(header=header))
        assert (await failure(call)).reason == "ERROR_REASON_UPLOAD_STALLED"


@pytest.mark.parametrize("offset", [0, HALF - 1, HALF + 1, -1])
async def test_bytes_follow_those_that_are_there(client: Client, offset: int) -> None:
    await create(client)
    await append(client, 0, CSV[:HALF])
    error = await failure(append(client, offset, b"x"))
    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason == "ERROR_REASON_UPLOAD_MOVED"
    assert error.metadata == {"name": NAME, "received_bytes": str(HALF)}
    assert (await failure(complete(client))).reason == "ERROR_REASON_UPLOAD_MOVED"


async def test_other_bytes_than_declared_leave_nothing(client: Client, tmp_path: Path) -> None:
    await create(client)
    error = await failure(append(client, 0, CSV, b"x"))
    assert (error.reason, error.metadata["limit_bytes"]) == (
        "ERROR_REASON_UPLOAD_TOO_LARGE",
        str(len(CSV)),
    )
    await delete(client)
    await create(client)
    await append(client, 0, CSV[::-1])
    assert (await failure(complete(client))).reason == "ERROR_REASON_DIGEST_MISMATCH"
    assert not files(tmp_path)


async def test_a_file_that_is_no_dataset_leaves_nothing(client: Client, tmp_path: Path) -> None:
    content = b"a,b\n1\n"
    upload = await create(client, content)
    await append(client, 0, content, name=upload.name)
    error = await failure(complete(client, upload.name))
    assert (error.reason, error.metadata["row"]) == ("ERROR_REASON_DATASET_INVALID", "1")
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"parent": "x"}, "header.parent"),
        ({"format": 0}, "header.format"),
        ({"sha256": ""}, "header.sha256"),
    ],
)
async def test_refuses_malformed_uploads(
    client: Client, fields: dict[str, Any], field: str
) -> None:
    error = await failure(create(client, **fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == field


async def test_refuses_sizes_that_cannot_be(client: Client, tmp_path: Path) -> None:
    assert (await failure(create(client, b""))).metadata["field"] == "size_bytes"
    large = await failure(create(client, bytes(100_001)))
    assert large.reason == "ERROR_REASON_UPLOAD_TOO_LARGE"
    assert not files(tmp_path)


async def test_the_same_bytes_are_not_uploaded_otherwise(client: Client) -> None:
    await create(client)
    error = await failure(create(client, format=pb.DATASET_FORMAT_NPZ))
    assert (error.reason, error.metadata["field"]) == ("ERROR_REASON_FIELD_INVALID", "header")


async def test_a_tenant_has_so_many_uploads_under_way(client: Client) -> None:
    first = await create(client, b"1")
    await create(client, b"2")
    error = await failure(create(client, b"3"))
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (error.reason, error.metadata) == ("ERROR_REASON_UPLOAD_LIMIT", {"limit": "2"})
    assert first.name in error.message
    await create(client, b"3", parent="tenants/acme")
    await delete(client, first.name)
    await create(client, b"3")


async def test_uploads_expire(tmp_path: Path, command: Sequence[str]) -> None:
    async with running_trainer(tmp_path, command, upload_keep_s=1e-6, max_uploads=1) as client:
        await create(client, b"1")
        await create(client, b"2")
        assert [path for path in files(tmp_path) if path.name == "part"] == [
            tmp_path / "datasets/.uploads/default" / hashlib.sha256(b"2").hexdigest() / "part"
        ]
    async with running_trainer(tmp_path, command, upload_keep_s=1e-6):
        assert not files(tmp_path)


async def test_what_the_disk_cannot_take_is_refused_before_it_comes(
    tmp_path: Path, command: Sequence[str]
) -> None:
    async with running_trainer(tmp_path, command, spare_disk_bytes=2**62) as client:
        for call in (create(client), client.upload()):
            error = await failure(call)
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.reason == "ERROR_REASON_STORAGE_FULL"
            assert error.metadata["free_bytes"] == "0"
        assert not files(tmp_path)


async def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(client)
    await append(client, 0, CSV[:HALF])
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = await failure(append(client, HALF, CSV[HALF:]))
    assert error.reason == "ERROR_REASON_STORAGE_FULL"
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([], id="nothing"),
        pytest.param([pb.AppendUploadRequest(chunk=b"x")], id="no position"),
        pytest.param([*parts(0, [b"x"]), *parts(0, [])], id="two positions"),
        pytest.param(parts(0, [bytes(2**20 + 1)]), id="a huge chunk"),
        pytest.param(parts(0, [b"x"], name="../../x"), id="another name"),
    ],
)
async def test_the_order_of_parts_is_kept(
    client: Client, requests: list[pb.AppendUploadRequest]
) -> None:
    await create(client)
    error = await failure(client.datasets.AppendUpload(iter(requests)))
    assert error.reason == "ERROR_REASON_FIELD_INVALID"


async def test_only_who_may_train_uploads(client: Client) -> None:
    await create(client)
    for denied in (client.key(read=["*"]), client.key("acme", train=["*"])):
        for call in (
            create(denied),
            get(denied),
            append(denied, 0, b"x"),
            complete(denied),
            delete(denied),
        ):
            assert (await failure(call)).reason == "ERROR_REASON_PERMISSION_DENIED"


async def test_what_is_not_there_cannot_be_worked_on(client: Client) -> None:
    calls = (get(client), append(client, 0, b"x"), complete(client), delete(client))
    for error in await asyncio.gather(*(failure(call) for call in calls)):
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert (error.reason, error.metadata) == ("ERROR_REASON_UPLOAD_NOT_FOUND", {"name": NAME})

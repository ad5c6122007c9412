"""RegisterVersion through a real channel: what is stored, what is refused, what is left behind."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import asyncio
import json
import uuid
from typing import Any

import grpc
import pytest

from servery.registry.v1 import registry_pb2 as pb
from tests.registry.conftest import (
    LIMIT_BYTES,
    MODEL,
    Client,
    Clock,
    bundle,
    declare,
    eventually,
    failure,
    messages,
    npz,
    signature,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
FIELD_INVALID = "ERROR_REASON_FIELD_INVALID"


def request_id() -> str:
    return str(uuid.uuid4())


def part(**changes: Any) -> list[pb.File]:
    """The declared files of a good bundle, the second one changed."""
    files = declare(bundle())
    for key, value in changes.items():
        setattr(files[1], key, value)
    return files


async def test_a_version_reads_back_as_it_was_sent(client: Client, clock: Clock) -> None:
    files = bundle(notes_dot_txt=b"two\nlines", empty=b"")
    version = await client.register(files, metrics={"accuracy": 0.9375})
    assert version.name == f"{MODEL}/versions/1"
    assert [file.path for file in version.files] == sorted(files)
    assert version.metrics == {"accuracy": 0.9375}
    assert version.create_time.ToDatetime(clock().tzinfo) == clock()
    got = await client.stub.GetVersion(pb.GetVersionRequest(name=version.name))
    assert got.version == version
    for path, data in files.items():
        assert await client.read(version.name, path) == data


async def test_equal_bundles_have_equal_digests_and_other_numbers(client: Client) -> None:
    first = await client.register()
    reordered = dict(reversed(bundle().items()))
    second = await client.register(reordered)
    other = await client.register(bundle(notes_dot_txt=b"x"))
    assert [first.name[-1], second.name[-1], other.name[-1]] == ["1", "2", "3"]
    assert first.digest == second.digest != other.digest


async def test_uploads_at_once_get_numbers_without_gaps(client: Client) -> None:
    uploads = [client.register(bundle(notes=bytes([n]))) for n in range(4)]
    numbers = {version.name.rpartition("/")[2] for version in await asyncio.gather(*uploads)}
    assert numbers == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"parent": ""}, "header.parent"),
        ({"parent": "tenants/acme/models/Digits"}, "header.parent"),
        ({"parent": "tenants/acme/models/a/versions/1"}, "header.parent"),
        ({"parent": "tenants/../models/a"}, "header.parent"),
        ({"declared": part(path="../x")}, "header.files[1].path"),
        ({"declared": part(path="/etc/passwd")}, "header.files[1].path"),
        ({"declared": part(path=".hidden")}, "header.files[1].path"),
        ({"declared": part(path="a/b")}, "header.files[1].path"),
        ({"declared": part(path="x\n")}, "header.files[1].path"),
        ({"declared": part(path="")}, "header.files[1].path"),
        ({"declared": part(path="model.onnx")}, "header.files[1].path"),
        ({"declared": part(size_bytes=-1)}, "header.files[1].size_bytes"),
        ({"declared": part(sha256="A" * 64)}, "header.files[1].sha256"),
        ({"declared": part(sha256="")}, "header.files[1].sha256"),
        ({"declared": declare({f"f{n}": b"" for n in range(33)})}, "header.files"),
        ({"metrics": {f"m{n}": 0.5 for n in range(33)}}, "header.metrics"),
        ({"metrics": {"": 0.5}}, "header.metrics"),
        ({"metrics": {"loss": float("nan")}}, "header.metrics[loss]"),
        ({"request_id": "again"}, "header.request_id"),
    ],
)
async def test_a_malformed_header_is_refused(
    client: Client, header: dict[str, Any], field: str
) -> None:
    error = await failure(client.register(**header))
    assert (error.code, error.reason) == (INVALID, FIELD_INVALID)
    assert error.metadata["field"] == field
    assert client.leftovers() == []


@pytest.mark.parametrize("path", ["model.onnx", "signature.json", "golden.npz"])
async def test_a_required_file_is_missing(client: Client, path: str) -> None:
    files = bundle()
    del files[path]
    error = await failure(client.register(files))
    assert (error.code, error.reason) == (INVALID, "ERROR_REASON_BUNDLE_INVALID")
    assert error.metadata["file"] == path


async def test_a_bundle_over_the_limit_is_refused_before_its_bytes(client: Client) -> None:
    error = await failure(client.register(declared=part(size_bytes=LIMIT_BYTES)))
    assert (error.code, error.reason) == (INVALID, "ERROR_REASON_UPLOAD_TOO_LARGE")
    assert error.metadata == {"limit_bytes": str(LIMIT_BYTES)}


@pytest.mark.parametrize("chunk_bytes", [1, 100_000])
async def test_other_bytes_than_declared_are_refused(client: Client, chunk_bytes: int) -> None:
    files = bundle()
    declared = declare(files)
    files["signature.json"] = files["signature.json"].replace(b"columns", b"COLUMNS")
    error = await failure(client.register(files, declared=declared, chunk_bytes=chunk_bytes))
    assert (error.code, error.reason) == (INVALID, "ERROR_REASON_DIGEST_MISMATCH")
    assert error.metadata["file"] == "signature.json"
    assert error.metadata["declared"] == declared[1].sha256
    assert client.leftovers() == []


async def test_a_false_digest_of_an_empty_file_is_refused(client: Client) -> None:
    declared = [*declare(bundle()), pb.File(path="empty", sha256="0" * 64)]
    error = await failure(client.register(declared=declared))
    assert error.reason == "ERROR_REASON_DIGEST_MISMATCH"


@pytest.mark.parametrize(
    ("files", "sent"),
    [
        pytest.param(bundle(), {"model.onnx": b"few"}, id="too few"),
        pytest.param(bundle(), {}, id="none"),
        pytest.param(bundle(), bundle(notes=b"more"), id="too many"),
    ],
)
async def test_another_number_of_bytes_than_declared_is_refused(
    client: Client, files: dict[str, bytes], sent: dict[str, bytes]
) -> None:
    error = await failure(client.register(sent, declared=declare(files)))
    assert (error.code, error.reason) == (INVALID, FIELD_INVALID)
    assert error.metadata["field"] == "chunk"
    assert client.leftovers() == []


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([], id="nothing"),
        pytest.param([pb.RegisterVersionRequest(chunk=b"x")], id="no header"),
        pytest.param([pb.RegisterVersionRequest()], id="an empty message"),
        pytest.param([*list(messages(bundle()))[:1]] * 2, id="two headers"),
    ],
)
async def test_parts_in_a_wrong_order_are_refused(
    client: Client, parts: list[pb.RegisterVersionRequest]
) -> None:
    error = await failure(client.stub.RegisterVersion(iter(parts)))
    assert (error.code, error.reason) == (INVALID, FIELD_INVALID)
    assert error.metadata["field"] == "part"


async def test_a_chunk_over_its_limit_is_refused(client: Client) -> None:
    files = bundle(big=bytes(2 * 1024 * 1024))
    error = await failure(client.register(files, chunk_bytes=1024 * 1024 + 1))
    assert (error.reason, error.metadata["field"]) == (FIELD_INVALID, "chunk")


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        pytest.param({"signature_dot_json": b"{"}, "signature.json", id="no JSON"),
        pytest.param({"golden_dot_npz": b"PK\x03\x04"}, "golden.npz", id="no archive"),
        pytest.param({"golden_dot_npz": npz(output__p=None)}, "golden.npz", id="an array lacks"),
        pytest.param(
            {"signature_dot_json": json.dumps(signature()).replace('"x"', '"y"').encode()},
            "signature.json",
            id="names that the golden rows and the graph have not",
        ),
    ],
)
async def test_a_malformed_file_of_the_bundle_is_refused(
    client: Client, changes: dict[str, bytes], file: str
) -> None:
    error = await failure(client.register(bundle(**changes)))
    assert (error.code, error.reason) == (INVALID, "ERROR_REASON_BUNDLE_INVALID")
    assert error.metadata["problem"]
    if "golden_dot_npz" in changes:
        assert error.metadata["file"] == file
    assert client.leftovers() == []


@pytest.mark.parametrize("length", [3_000, 50_000])
async def test_a_long_name_in_a_file_does_not_hide_the_reason(client: Client, length: int) -> None:
    stated = signature()
    stated["inputs"][0] |= {"name": "\U0001f600" * length, "shape": "wrong"}
    error = await failure(client.register(bundle(signature_dot_json=json.dumps(stated).encode())))
    assert error.reason == "ERROR_REASON_BUNDLE_INVALID"
    assert error.metadata["problem"].count("\U0001f600") > 100


async def test_a_repeated_request_gets_the_first_answer(client: Client) -> None:
    again = request_id()
    first = await client.register(request_id=again)
    assert await client.register(request_id=again.upper()) == first
    assert await client.versions() == [first.name]


async def test_a_repeated_request_is_answered_before_its_bytes_arrive(client: Client) -> None:
    again = request_id()
    first = await client.register(request_id=again)
    call = client.stub.RegisterVersion()
    await call.write(next(messages(bundle(), request_id=again)))
    assert (await call).version == first


async def test_repeated_requests_at_once_make_one_version(client: Client) -> None:
    again = request_id()
    answers = await asyncio.gather(*(client.register(request_id=again) for _ in range(3)))
    assert answers[0] == answers[1] == answers[2]
    assert await client.versions() == [answers[0].name]


async def test_a_request_id_is_for_one_request_only(client: Client) -> None:
    again = request_id()
    first = await client.register(request_id=again)
    error = await failure(client.register(bundle(notes=b"other"), request_id=again))
    assert (error.code, error.reason) == (INVALID, "ERROR_REASON_REQUEST_ID_REUSED")
    assert error.metadata == {"request_id": again}
    assert await client.versions() == [first.name]


async def test_a_refused_request_can_be_repeated(client: Client) -> None:
    again = request_id()
    broken = list(messages(bundle(), request_id=again))[:-1]
    await failure(client.stub.RegisterVersion(iter(broken)))
    assert (await client.register(request_id=again)).name == f"{MODEL}/versions/1"


async def test_a_request_id_is_forgotten_after_a_day(client: Client, clock: Clock) -> None:
    again = request_id()
    await client.register(request_id=again)
    clock.pass_hours(23.9)
    await client.register(request_id=again)
    clock.pass_hours(0.1)
    await client.register(request_id=again)
    assert await client.versions() == [f"{MODEL}/versions/2", f"{MODEL}/versions/1"]


async def test_an_upload_that_breaks_off_leaves_nothing(client: Client) -> None:
    call = client.stub.RegisterVersion()
    for message in list(messages(bundle(), chunk_bytes=100))[:5]:
        await call.write(message)
    await eventually(lambda: bool(client.leftovers()))  # It has begun to stage the files.
    call.cancel()
    await eventually(lambda: not client.leftovers())
    listed = await client.stub.ListModels(pb.ListModelsRequest(parent="tenants/acme"))
    assert not listed.models


async def test_uploads_that_break_off_anywhere_leave_nothing(client: Client) -> None:
    parts = list(messages(bundle(), chunk_bytes=100))
    for count in range(1, len(parts)):
        call = client.stub.RegisterVersion()
        for message in parts[:count]:
            await call.write(message)
        call.cancel()
    await client.register()
    await eventually(lambda: not any((client.data_dir / "staging").iterdir()))
    assert await client.versions() == [f"{MODEL}/versions/1"]

"""What archives may hold, whatever they are made of."""

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from servery_trainer import members
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.members import read_members
from tests.trainer.packs import PACKERS, as_tar, as_tar_gz, as_zip

Pack = Callable[[Mapping[str, bytes]], bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def contents(path: Path, packed: bytes) -> dict[str, bytes]:
    path.write_bytes(packed)
    return {member.name: member.read(1 << 20) for member in read_members(path)}


def refused(path: Path, packed: bytes) -> dict[str, str]:
    with pytest.raises(DatasetInvalidError) as error:
        contents(path, packed)
    assert str(path) not in str(error.value)
    return error.value.metadata


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_files_come_in_the_order_of_the_archive(path: Path, pack: Pack) -> None:
    files = {"b/2.txt": b"two", "./a/1.txt": b"", "b/ä.txt": b"x" * 100_000}
    found = contents(path, pack(files | {"b/.DS_Store": b"junk", "__MACOSX/b/2.txt": b"junk"}))
    assert list(found.items()) == [
        ("b/2.txt", b"two"),
        ("a/1.txt", b""),
        ("b/ä.txt", b"x" * 100_000),
    ]


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../a.txt", "PATH_ESCAPE"),
        ("a/../../b.txt", "PATH_ESCAPE"),
        ("/etc/passwd", "PATH_ESCAPE"),
        ("a\\..\\b.txt", "PATH_ESCAPE"),
        ("C:/a.txt", "PATH_ESCAPE"),
        ("a/\x07.txt", "MALFORMED"),
        ("a/" + "n" * 1000, "MALFORMED"),
    ],
)
def test_refuses_names_that_lead_elsewhere(path: Path, pack: Pack, name: str, problem: str) -> None:
    found = refused(path, pack({"a/fine.txt": b"x", name: b"x"}))
    assert found["problem"] == problem
    assert found.get("file") == (name if problem == "PATH_ESCAPE" else None)


def test_refuses_a_name_cut_short_by_nul(path: Path) -> None:
    packed = as_zip({"a/goodXpng": b"x"}).replace(b"goodXpng", b"good\0png")
    assert refused(path, packed)["problem"] == "MALFORMED"


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_refuses_archives_in_archives(path: Path, pack: Pack) -> None:
    for inner in PACKERS.values():
        found = refused(path, pack({"a/1.txt": b"x", "a/2.txt": inner({"b": b"x"})}))
        assert found == {"problem": "NESTED_ARCHIVE", "file": "a/2.txt"}


def test_refuses_compressed_files_but_not_texts_that_look_like_them(path: Path) -> None:
    for squeeze in (gzip.compress, bz2.compress, lzma.compress):
        found = refused(path, as_zip({"a/1.txt": squeeze(b"x" * 100)}))
        assert found == {"problem": "NESTED_ARCHIVE", "file": "a/1.txt"}
    texts = {"a/1.txt": b"BZhang met Rar! and PK", "a/2.txt": b"7z ustar"}
    assert contents(path, as_zip(texts)) == texts


def tar_of(*entries: tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for entry in entries:
            archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    return content.getvalue()


def entry(name: str, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_refuses_what_is_no_regular_file_in_a_tar(path: Path, kind: bytes) -> None:
    packed = tar_of(entry("a/1.txt"), entry("a/2.txt", type=kind, linkname="/etc/passwd"))
    assert refused(path, packed) == {"problem": "LINK", "file": "a/2.txt"}


def test_refuses_a_link_in_a_zip(path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        link = zipfile.ZipInfo("a/2.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert refused(path, content.getvalue()) == {"problem": "LINK", "file": "a/2.txt"}


def test_refuses_two_files_of_one_name(path: Path) -> None:
    packed = tar_of(entry("a/1.txt"), entry("a/./1.txt"))
    assert refused(path, packed) == {"problem": "DUPLICATE_FILE", "file": "a/./1.txt"}
    packed = as_zip({"a/1.txt": b"x", "a/2.txt": b"y"}).replace(b"a/2.txt", b"a/1.txt")
    assert refused(path, packed) == {"problem": "DUPLICATE_FILE", "file": "a/1.txt"}


@pytest.mark.parametrize("pack", [as_zip, as_tar_gz])
def test_refuses_what_unpacks_to_too_much(path: Path, pack: Pack) -> None:
    packed = pack({f"a/{number}.txt": bytes(1 << 20) for number in range(70)})
    assert len(packed) < 1 << 20
    assert refused(path, packed) == {"problem": "TOO_LARGE"}


def test_refuses_a_file_that_is_too_long(path: Path) -> None:
    found = refused(path, as_tar({"a/1.txt": bytes((1 << 20) + 1)}))
    assert found == {"problem": "TOO_LARGE", "file": "a/1.txt"}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_refuses_too_many_files(path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"a/{number}.txt": b"" for number in range(11)}
    monkeypatch.setattr(members, "MAX_FILES", 10)
    assert refused(path, pack(files)) == {"problem": "TOO_LARGE"}


def with_size(packed: bytes, size: bytes) -> bytes:
    """A TAR whose first entry says that it is of another size."""
    header = bytearray(packed[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + packed[512:]


NEGATIVE = b"\xff" * 10 + b"\xfc\x00"


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"a,b\n1,2\n", id="CSV"),
        pytest.param(as_zip({"a/1": b"x" * 100})[:-30], id="ZIP cut off"),
        pytest.param(as_tar({"a/1": b"x" * 4000})[:2000], id="TAR cut off"),
        pytest.param(as_tar_gz({"a/1": bytes(range(256)) * 20})[:-60], id="gzip cut off"),
        pytest.param(b"\x1f\x8b" + b"junk" * 300, id="no gzip"),
        pytest.param(gzip.compress(b"junk" * 300), id="gzip of no TAR"),
        pytest.param(with_size(as_tar({"a/1": b"x"}), NEGATIVE), id="negative size"),
        pytest.param(with_size(as_tar({"a/1": b"x"}), b"77777777777\0"), id="8 GiB"),
        pytest.param(
            gzip.compress(
                tar_of(entry("pax", type=tarfile.XHDTYPE, size=8 << 20), entry("a/1.txt"))
            ),
            id="a header of 8 MiB",
        ),
        pytest.param(
            tar_of(entry("a/1.txt", type=tarfile.GNUTYPE_SPARSE, size=512)), id="sparse file"
        ),
    ],
)
def test_refuses_what_is_damaged_or_lies(path: Path, packed: bytes) -> None:
    assert refused(path, packed)["problem"] in ("MALFORMED", "TOO_LARGE", "LINK")


def test_refuses_changed_bytes(path: Path) -> None:
    packed = bytearray(as_zip({"a/1.txt": bytes(range(256)) * 10}))
    packed[60] ^= 0xFF
    assert refused(path, bytes(packed)) == {"problem": "MALFORMED", "file": "a/1.txt"}


def test_refuses_an_encrypted_zip(path: Path) -> None:
    packed = bytearray(as_zip({"a/1.txt": b"x"}))
    for record, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = packed.index(record) + flags
        packed[at : at + 2] = struct.pack("<H", 1)
    assert refused(path, bytes(packed))["problem"] == "MALFORMED"

"""What `inspect` reads out of a file, and what it refuses."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer import archives, tables
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.datasets import DatasetInfo, inspect

CSV, NPZ = pb.DATASET_FORMAT_CSV, pb.DATASET_FORMAT_NPZ


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def inspect_csv(file: Path, content: bytes) -> DatasetInfo:
    file.write_bytes(content)
    return inspect(file, CSV)


def refused(file: Path, content: bytes, format: Any = CSV) -> dict[str, str]:  # noqa: A002
    file.write_bytes(content)
    with pytest.raises(DatasetInvalidError) as error:
        inspect(file, format)
    assert str(file) not in str(error.value)
    return error.value.metadata


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def test_describes_the_columns_of_a_csv_file(file: Path) -> None:
    info = inspect_csv(file, b"a,b,c,d\n3,x,true,\n-2.5,y,False,\n,x,TRUE,\n1e2,x,false,\n")
    assert info.row_count == 4
    assert list(info.columns) == [
        pb.Column(
            name="a",
            type=pb.COLUMN_TYPE_NUMERIC,
            missing_count=1,
            distinct_count=3,
            minimum=-2.5,
            maximum=100,
            mean=33.5,
            standard_deviation=float(np.std([3, -2.5, 100])),
        ),
        pb.Column(name="b", type=pb.COLUMN_TYPE_TEXT, distinct_count=2),
        pb.Column(name="c", type=pb.COLUMN_TYPE_BOOLEAN, distinct_count=4),
        pb.Column(name="d", type=pb.COLUMN_TYPE_TEXT, missing_count=4),
    ]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"a,b\n1,2\n", id="plain"),
        pytest.param(b"a,b\n1,2", id="no line end"),
        pytest.param(b"a,b\r\n1,2\r\n", id="carriage returns"),
        pytest.param(b"\xef\xbb\xbfa,b\n1,2\n", id="byte order mark"),
        pytest.param(b"\na,b\n\n1,2\n\n", id="blank lines"),
        pytest.param(b'"a"," b "\n"1", +2 \n', id="quotes and spaces"),
    ],
)
def test_reads_csv_however_it_is_written(file: Path, content: bytes) -> None:
    info = inspect_csv(file, content)
    assert info.row_count == 1
    assert [(c.name, c.type, c.maximum) for c in info.columns] == [("a", 1, 1), ("b", 1, 2)]


@pytest.mark.parametrize("word", ["NaN", "inf", "1e999", "0x1F", "1_000", "1,5"])
def test_a_column_with_anything_but_decimal_numbers_is_text(file: Path, word: str) -> None:
    info = inspect_csv(file, f'a\n1\n"{word}"\n'.encode())
    assert info.columns[0].type == pb.COLUMN_TYPE_TEXT
    assert not info.columns[0].HasField("maximum")


def test_a_type_found_in_the_first_block_is_given_up_in_a_later_one(file: Path) -> None:
    rows = (tables.MAX_ROW_BYTES // 4) * b"123\n"
    info = inspect_csv(file, b"a\n" + rows + b"4\nend\n")
    assert info.row_count == tables.MAX_ROW_BYTES // 4 + 2
    assert info.columns[0].type == pb.COLUMN_TYPE_TEXT
    assert info.columns[0].distinct_count == 3


def test_means_and_deviations_hold_over_blocks(file: Path) -> None:
    numbers = 1e9 + np.arange(600_000) % 1000
    cells = "\n".join(f"{number},{'x' * 20}" for number in numbers)
    column, _ = inspect_csv(file, f"n,pad\n{cells}\n".encode()).columns
    assert file.stat().st_size > 2 * tables.MAX_ROW_BYTES
    assert column.mean == pytest.approx(numbers.mean(), rel=1e-12)
    assert column.standard_deviation == pytest.approx(numbers.std(), rel=1e-9)


def test_a_table_is_one_whatever_its_first_column_is_called(file: Path) -> None:
    for name in ("PK", "PKID", "Rar!", f"{'a' * 100},{'b' * 100},{'c' * 54},ustar"):
        assert inspect_csv(file, f"{name}\n{'1,' * name.count(',')}1\n".encode()).row_count == 1


TYPED = b"zip,day\n01234,2024-02-29\n00501,\n"


def test_columns_are_what_they_are_declared_to_be(file: Path) -> None:
    file.write_bytes(TYPED)
    code, day = inspect(file, CSV, {"zip": pb.COLUMN_TYPE_TEXT}).columns
    assert (code.type, code.declared, code.HasField("mean")) == (pb.COLUMN_TYPE_TEXT, True, False)
    assert (day.type, day.declared) == (pb.COLUMN_TYPE_DATE, False)


@pytest.mark.parametrize(
    ("column", "kind", "found"),
    [
        ("day", pb.COLUMN_TYPE_NUMERIC, {"problem": "NOT_A_NUMBER", "row": "1", "column": "day"}),
        ("zip", pb.COLUMN_TYPE_DATE, {"problem": "WRONG_TYPE", "row": "1", "column": "zip"}),
        ("zap", pb.COLUMN_TYPE_TEXT, {"problem": "MISSING_COLUMN", "column": "zap"}),
    ],
)
def test_refuses_columns_that_are_not_what_is_declared(
    file: Path, column: str, kind: Any, found: dict[str, str]
) -> None:
    file.write_bytes(TYPED)
    with pytest.raises(DatasetInvalidError) as error:
        inspect(file, CSV, {column: kind})
    assert error.value.metadata == found


def test_counts_distinct_values_up_to_ten_thousand(file: Path) -> None:
    info = inspect_csv(file, b"a,b\n" + b"".join(b"%d,%d\n" % (n, -n % 3) for n in range(12_000)))
    assert [column.distinct_count for column in info.columns] == [10_000, 3]


@pytest.mark.parametrize(
    ("content", "problem", "place"),
    [
        pytest.param(b"", Problem.EMPTY, {}, id="nothing"),
        pytest.param(b"\n\n", Problem.EMPTY, {}, id="blank lines only"),
        pytest.param(b"a,b\n", Problem.EMPTY, {}, id="no rows"),
        pytest.param(b"a,b", Problem.EMPTY, {}, id="no rows, no line end"),
        pytest.param(b"a,b\n1,2\n1\n", Problem.RAGGED_ROW, {"row": "2"}, id="short row"),
        pytest.param(b"a,b\n1,2,3\n", Problem.RAGGED_ROW, {"row": "1"}, id="long row"),
        pytest.param(
            b'a,b\n"x\ny\nz",2\n\n3\n', Problem.RAGGED_ROW, {"row": "2"}, id="after line breaks"
        ),
        pytest.param(b'a,b\n1,2\n"3,4\n5,6\n', Problem.RAGGED_ROW, {"row": "2"}, id="lost quote"),
        *(
            pytest.param(
                b"a,b\n1,2\n" + rest,
                Problem.MALFORMED,
                {"row": "2", "column": "b"},
                id=f"end {rest!r}",
            )
            for rest in (b'3,"4\n5,6\n', b'3,"4\n5,6', b'3,"4""\n', b'3,"4\n5,""')
        ),
        pytest.param(b"a,b,a\n1,2,3\n", Problem.DUPLICATE_COLUMN, {"column": "a"}, id="same name"),
        pytest.param(b"a,,c\n1,2,3\n", Problem.MALFORMED, {}, id="no name"),
        pytest.param(b"a,b\0\n1,2\n", Problem.MALFORMED, {}, id="control character in a name"),
        pytest.param(b"a,\xff\n1,2\n", Problem.MALFORMED, {}, id="no UTF-8 in a name"),
        pytest.param(b"a" * 201 + b"\n1\n", Problem.MALFORMED, {}, id="long name"),
        pytest.param(
            b"a,b\n1,2\n1,\xff\n", Problem.MALFORMED, {"row": "2", "column": "b"}, id="no UTF-8"
        ),
        pytest.param(
            b"a,b\n1,2\n\x00,2\n", Problem.MALFORMED, {"row": "2", "column": "a"}, id="NUL"
        ),
        pytest.param(
            b",".join(b"c%d" % n for n in range(5000)), Problem.TOO_LARGE, {}, id="many columns"
        ),
        pytest.param(b"a," * (8 << 20), Problem.TOO_LARGE, {}, id="one line of columns"),
        pytest.param(b"x" * (8 << 20), Problem.MALFORMED, {}, id="one line of text"),
        pytest.param(
            b"a,b\n1,2\n" + b"x" * (8 << 20) + b",1\n", Problem.MALFORMED, {}, id="endless row"
        ),
        pytest.param(npz(a=np.arange(3)), Problem.MALFORMED, {}, id="an archive"),
    ],
)
def test_refuses_csv(file: Path, content: bytes, problem: Problem, place: dict[str, str]) -> None:
    assert refused(file, content) == {"problem": problem} | place


def test_numbers_a_ragged_row_in_a_later_block(file: Path) -> None:
    rows = tables.MAX_ROW_BYTES // 2
    found = refused(file, b"a,b\n" + b"1,2\n" * rows + b"1\n")
    assert found == {"problem": "RAGGED_ROW", "row": str(rows + 1)}


def test_describes_the_arrays_of_an_archive(file: Path) -> None:
    file.write_bytes(
        npz(
            x=np.array([[1, np.nan], [-3, 2]], np.float32),
            n=np.array([-1, -2]),
            t=np.array(["a", "b"]),
            s=np.array([b"a", b"a"]),
            b=np.array([True, False]),
        )
    )
    info = inspect(file, NPZ)
    assert info.row_count == 2
    x, n, t, s, b = info.columns
    assert x == pb.Column(
        name="x",
        type=pb.COLUMN_TYPE_NUMERIC,
        shape=[2, 2],
        dtype="float32",
        distinct_count=4,
        minimum=-3,
        maximum=2,
        mean=0,
        standard_deviation=float(np.std([1, -3, 2])),
    )
    assert (n.dtype, n.distinct_count, n.minimum, n.maximum) == ("int64", 2, -2, -1)
    assert [t.type, s.type] == [pb.COLUMN_TYPE_TEXT] * 2
    assert (t.distinct_count, s.distinct_count) == (2, 1)
    assert b.type == pb.COLUMN_TYPE_BOOLEAN
    assert not b.HasField("minimum")


def test_reads_an_archive_chunk_by_chunk(file: Path) -> None:
    big = np.arange(40_000_000, dtype=np.uint16)
    big[-1] = 7
    with zipfile.ZipFile(file, "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array(stream, big)
    tracemalloc.start()
    info = inspect(file, NPZ)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert info.columns[0].maximum == 65_535
    assert peak < 20 << 20


@pytest.mark.parametrize(
    ("arrays", "problem", "array"),
    [
        pytest.param({}, Problem.EMPTY, None, id="no arrays"),
        pytest.param({"x": np.array([{}, 1], object)}, Problem.OBJECT_ARRAY, "x", id="objects"),
        pytest.param({"x": np.zeros(3, "c8")}, Problem.WRONG_DTYPE, "x", id="complex"),
        pytest.param({"x": np.zeros(3, "i4,f4")}, Problem.WRONG_DTYPE, "x", id="records"),
        pytest.param({"x": np.zeros(3, "M8[s]")}, Problem.WRONG_DTYPE, "x", id="dates"),
        pytest.param({"x": np.float32(3)}, Problem.WRONG_SHAPE, "x", id="one value"),
        pytest.param({"x": np.zeros((0, 3))}, Problem.EMPTY, "x", id="no rows"),
        pytest.param(
            {"x": np.zeros(3), "y": np.zeros(4)}, Problem.WRONG_SHAPE, "y", id="other rows"
        ),
        pytest.param({"x": np.zeros(1 << 24)}, Problem.TOO_LARGE, None, id="bomb"),
        pytest.param(
            {f"x{n}": np.zeros(1) for n in range(archives.MAX_ARRAYS + 1)},
            Problem.TOO_LARGE,
            None,
            id="many arrays",
        ),
    ],
)
def test_refuses_archives(
    file: Path, arrays: dict[str, Any], problem: Problem, array: str | None
) -> None:
    found = refused(file, npz(**arrays), NPZ)
    assert found == {"problem": problem} | ({"array": array} if array else {})


def claiming(shape: str, descr: str = "<f4", body: bytes = b"") -> bytes:
    """An archive whose array says it has `shape`."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body
        archive.writestr("x.npy", array)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"a,b\n1,2\n" * 99, id="a table"),
        pytest.param(b"PK\x05\x06" + bytes(17), id="half an end record"),
        pytest.param(npz(x=np.arange(99))[:-30], id="cut off"),
        pytest.param(b"\x93NUMPY" + bytes(200), id="a single array"),
        pytest.param(claiming("(1099511627776,)"), id="8 TiB that are not there"),
        pytest.param(claiming("(-1, -1)", body=bytes(4)), id="negative shape"),
        pytest.param(claiming("(1,)", body=bytes(5)), id="bytes left over"),
        pytest.param(claiming("__import__('os')", body=bytes(4)), id="code for a shape"),
        pytest.param(claiming("(1,)", descr="zzz", body=bytes(4)), id="unknown dtype"),
    ],
)
def test_refuses_damaged_archives(file: Path, content: bytes) -> None:
    assert refused(file, content, NPZ)["problem"] == Problem.MALFORMED


def test_refuses_an_archive_whose_bytes_were_changed(file: Path) -> None:
    content = io.BytesIO()
    np.savez(content, x=np.arange(1000))
    damaged = bytearray(content.getvalue())
    damaged[600] ^= 1
    assert refused(file, bytes(damaged), NPZ) == {"problem": "MALFORMED", "array": "x"}


@pytest.mark.parametrize("name", ["readme.txt", "x\n.npy"])
def test_refuses_an_archive_of_other_files(file: Path, name: str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"hello")
    assert refused(file, file.read_bytes(), NPZ)["problem"] == Problem.MALFORMED


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_refuses_two_arrays_of_one_name(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for _ in range(2):
            with archive.open("x.npy", "w") as stream:
                np.lib.format.write_array(stream, np.arange(3))
    assert refused(file, file.read_bytes(), NPZ)["problem"] == Problem.MALFORMED

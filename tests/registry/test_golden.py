"""`signature.json` and `golden.npz`: every way in which they can be wrong."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery_registry.bundle import BundleInvalidError, Signature
from servery_registry.golden import check_golden
from tests.registry.conftest import npz, signature


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive(member: bytes, kind: int = zipfile.ZIP_DEFLATED, name: str = "input:x.npy") -> bytes:
    stream = io.BytesIO(npz(input__x=None))
    with zipfile.ZipFile(stream, "a", kind) as file:
        file.writestr(name, member)
    return stream.getvalue()


def parsed() -> Signature:
    return Signature.parse(json.dumps(signature()).encode())


def test_good_golden_rows_pass(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(npz())
    check_golden(path, parsed())


def test_texts_are_unicode_arrays(tmp_path: Path) -> None:
    stated = signature()
    stated["outputs"][0] |= {"datatype": "BYTES", "shape": [-1, 1]}
    path = tmp_path / "golden.npz"
    path.write_bytes(npz(output__p=np.array([["yes"], ["no"], ["yes"]])))
    check_golden(path, Signature.parse(json.dumps(stated).encode()))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x93NUMPY", id="no archive"),
        pytest.param(npz()[:-30], id="cut off"),
        pytest.param(npz(input__x=None), id="an input lacks"),
        pytest.param(npz(tolerance=None), id="tolerance lacks"),
        pytest.param(npz(tolerance=np.float32(0.1)), id="tolerance of another type"),
        pytest.param(npz(tolerance=np.array([0.1])), id="tolerance is no scalar"),
        pytest.param(npz(tolerance=np.float64("nan")), id="tolerance is no number"),
        pytest.param(npz(tolerance=np.float64(-1)), id="tolerance is negative"),
        pytest.param(npz(extra=np.ones(3)), id="an array too many"),
        pytest.param(npz(input__x=np.ones((3, 2))), id="another dtype"),
        pytest.param(npz(input__x=np.ones((3, 3), np.float32)), id="another shape"),
        pytest.param(npz(input__x=np.ones((3,), np.float32)), id="another rank"),
        pytest.param(npz(input__x=np.ones((2, 2), np.float32)), id="another number of rows"),
        pytest.param(
            npz(input__x=np.ones((0, 2), np.float32), output__p=np.ones((0, 2), np.float32)),
            id="no rows",
        ),
        pytest.param(npz(input__x=np.array([["a", "b"]] * 3)), id="text for numbers"),
        pytest.param(npz(input__x=np.array([[None, 1]] * 3, object)), id="objects"),
        pytest.param(archive(b"garbage"), id="a member is no array"),
        pytest.param(
            archive(npy("{'descr':'<f8','fortran_order':False,'shape':(2**40,)}")),
            id="a header with code",
        ),
        pytest.param(
            archive(npy("{'descr':'<f8','fortran_order':False,'shape':(1099511627776,)}")),
            id="a header that claims 8 TiB",
        ),
        pytest.param(
            archive(npy("{'descr':'|V0','fortran_order':False,'shape':(-1, 2)}")), id="negative"
        ),
        pytest.param(archive(b"\x93NUMPY\x09\x00"), id="an unknown version of the format"),
        pytest.param(archive(bytes(300 * 2**20)), id="a bomb of 300 MB in 300 kB"),
        pytest.param(archive(b"x", zipfile.ZIP_LZMA), id="another compression"),
        pytest.param(archive(npy("{}"), name="../../x.npy"), id="a path for a name"),
    ],
)
def test_bad_golden_rows_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(data)
    with pytest.raises(BundleInvalidError) as caught:
        check_golden(path, parsed())
    assert caught.value.metadata["file"] == "golden.npz"
    assert str(tmp_path) not in str(caught.value)


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tolerance.npy", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("tolerance.npy", b"x")
    with pytest.raises(BundleInvalidError):
        check_golden(path, parsed())


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = signature()
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"[" * 100_000, id="too deep"),
        pytest.param(b" " * 2**21, id="too large"),
        pytest.param(changed(lambda d: d.pop("task")), id="no task"),
        pytest.param(changed(lambda d: d.pop("inputs")), id="no inputs"),
        pytest.param(changed(lambda d: d.update(outputs=[])), id="no output"),
        pytest.param(changed(lambda d: d.update(inputs=["x"])), id="a text for a tensor"),
        pytest.param(changed(lambda d: d["inputs"][0].update(name="")), id="no name"),
        pytest.param(changed(lambda d: d["inputs"][0].update(datatype="FLOAT")), id="datatype"),
        pytest.param(changed(lambda d: d["inputs"][0].update(datatype=[])), id="datatype list"),
        pytest.param(changed(lambda d: d["inputs"][0].update(shape=[2, 2])), id="fixed batch"),
        pytest.param(changed(lambda d: d["inputs"][0].update(shape=[])), id="no batch"),
        pytest.param(changed(lambda d: d["inputs"][0].update(shape=[-1, 0])), id="zero size"),
        pytest.param(changed(lambda d: d["inputs"][0].update(shape=[-1, True])), id="bool size"),
        pytest.param(changed(lambda d: d["inputs"].append(d["inputs"][0])), id="twice"),
    ],
)
def test_a_bad_signature_is_refused(text: bytes) -> None:
    with pytest.raises(BundleInvalidError) as caught:
        Signature.parse(text)
    assert caught.value.metadata["file"] == "signature.json"

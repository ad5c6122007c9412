"""Which ends a column may be held between."""

from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.clipping import Clip, parse_clips
from servery_trainer.data_errors import DatasetInvalidError

VALUES = np.array([0, 10, 20, 30, 40, np.nan], np.float32)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({"lower": 5}, (5, np.inf)),
        ({"upper": 5}, (-np.inf, 5)),
        ({"lower": 5, "upper": 5}, (5, 5)),
        ({"lower_quantile": 0.25, "upper_quantile": 0.75}, (10, 30)),
        ({"lower": -1, "upper_quantile": 1}, (-1, 40)),
    ],
)
def test_ends_are_declared_or_fitted(fields: dict[str, Any], ends: tuple[float, float]) -> None:
    clip = Clip.parse(pb.Clip(**fields), "clip")
    np.testing.assert_array_equal(clip.fit("c", VALUES), ends)
    assert Clip.parse(clip.to_proto(), "clip") == clip


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "clip[c]"),
        ({"lower": np.nan}, "clip[c].lower"),
        ({"upper": 1e39}, "clip[c].upper"),
        ({"lower": 2, "upper": 1}, "clip[c].upper"),
        ({"lower_quantile": -0.1}, "clip[c].lower_quantile"),
        ({"upper_quantile": np.nan}, "clip[c].upper_quantile"),
        ({"lower_quantile": 0.9, "upper_quantile": 0.1}, "clip[c].upper_quantile"),
        ({"lower": 1, "lower_quantile": 0.1}, "clip[c].lower_quantile"),
    ],
)
def test_refuses_malformed_ends(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldInvalidError) as error:
        parse_clips({"c": pb.Clip(**fields)}, "clip")
    assert error.value.metadata["field"] == field


def test_refuses_ends_that_cannot_be_fitted() -> None:
    for clip, values in (
        (Clip(lower_quantile=0.5), np.full(3, np.nan, np.float32)),
        (Clip(lower=50, upper_quantile=0.5), VALUES),
    ):
        with pytest.raises(DatasetInvalidError) as error:
            clip.fit("c", values)
        assert error.value.metadata["column"] == "c"

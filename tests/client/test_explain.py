"""Why a model answers as it does: through the SDK, and as a table."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery import ApiError, Client
from servery.cli.explanation import Share, facts, largest
from servery.cli.output import print_table
from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference import graphs


async def test_the_sdk_asks_why(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1), explain_onnx=graphs.parts())
    graphs.store(tmp_path, "dumb", graphs.plus(1))
    settings = InferenceSettings(model_repository=tmp_path, drain_s=0, admission_wall_s=0)
    async with serving_inference(settings) as server:
        await asyncio.wait_for(server.ready.wait(), 20)
        with Client(server.address) as client:
            told = await asyncio.to_thread(client.explain, "m", {"x": [[1, 2]]})
            assert {name: values.tolist() for name, values in told.items()} == {
                "parts": [[10, 20]],
                "total": [[30]],
            }
            with pytest.raises(ApiError) as caught:
                await asyncio.to_thread(client.explain, "dumb", {"x": [[1, 2]]})
            assert caught.value.reason == "ERROR_REASON_EXPLANATION_UNAVAILABLE"


def test_a_table_prints_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["TEXT"], [["a[0,1]"], ["[/b]"], ["[red]"]])
    assert capsys.readouterr().out.split() == ["TEXT", "a[0,1]", "[/b]", "[red]"]


def f4(values: Any) -> Any:
    return np.array(values, "f4")


TOLD = {
    "attribution.age": f4([[0.25], [-0.5]]),
    "attribution.city": f4([[-0.75], [0.125]]),
    "explained.target": np.array([["yes"], ["no"]], object),
    "explained.score": f4([[0.5], [0.75]]),
}


def test_the_values_that_weigh_most_come_first() -> None:
    inputs = {"age": [40, 20], "city": ["Bern", "Rome"]}
    assert largest(inputs, TOLD, 0) == ([Share("city", "Bern", -0.75), Share("age", 40, 0.25)], [])
    assert largest(inputs, TOLD, 1, count=1) == ([Share("age", 20, -0.5)], [0.125])
    told = {name: value.item() for name, value in facts(TOLD, 0).items()}
    assert told == {"target": "yes", "score": 0.5}


def test_of_many_numbers_each_has_its_place() -> None:
    told = {"attribution.image": f4([[[0.5, -1.0]]])}
    shares, _ = largest({"image": f4([[[7, 8]]])}, told, 0)
    assert shares == [Share("image[0,1]", 8, -1.0), Share("image[0,0]", 7, 0.5)]


def test_of_a_text_each_word_is_told() -> None:
    told = {
        "attribution.text": f4([[0.5, -1.0, 0.0]]),
        "explained.words": np.array([["so", "bad", ""]], object),
    }
    shares, _ = largest({"text": ["so bad"]}, told, 0)
    assert shares == [Share("text", "bad", -1.0), Share("text", "so", 0.5)]
    assert facts(told, 0) == {}


def test_pixels_of_grey_images_have_their_values_without_a_channel() -> None:
    told = {"attribution.image": f4([[[[0.5], [0.125]]]])}
    shares, _ = largest({"image": np.array([[[7, 9]]])}, told, 0)
    assert shares == [Share("image[0,0,0]", 7, 0.5), Share("image[0,1,0]", 9, 0.125)]

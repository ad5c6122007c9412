"""A table of words, dates and gaps through the front door: trained, served, asked as it is."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.running import Platform

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PENGUINS = Path(__file__).parents[1] / "trainer" / "data" / "penguins.csv"


def test_a_served_model_takes_the_rows_of_the_file(platform: Platform) -> None:
    train = ("train", PENGUINS, "--target", "species", "--model", "penguins")
    done = platform.cli(*train, "--missing", "impute-median", "--type", "island=text", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["result"]["metrics"]["accuracy"] > 0.9
    asked = platform.cli("predict", "penguins", PENGUINS, "-o", "json")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    labels = np.ravel(json.loads(asked.stdout)["label"]).tolist()
    with PENGUINS.open(newline="") as file:
        truth = [row["species"] for row in csv.DictReader(file)]
    assert np.mean([label == species for label, species in zip(labels, truth, strict=True)]) > 0.9


def test_a_type_that_does_not_exist_is_refused_before_anything_is_sent(platform: Platform) -> None:
    done = platform.cli(
        *("train", PENGUINS, "--target", "species", "--model", "penguins", "--type", "sex=colour"),
    )
    assert done.returncode == 2

"""Networks in PyTorch: each is converted for real, and the graph answers what PyTorch answers."""

from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.fitting import fit_columns, fit_text
from servery_trainer.imputation import Imputation
from servery_trainer.numbering import Numbering
from servery_trainer.preprocessing import ArrayPreprocessing, Preprocessing
from servery_trainer.spec import parse_spec
from servery_trainer.tasks import Fill, TextTask
from tests.trainer.specs import table as spec_of
from tests.trainer.specs import tabular, text
from tests.trainer.test_export import pictures
from tests.trainer.test_served_as_trained import ROWS, TYPES, check, table
from tests.trainer.test_text_families import ODD, SENTENCES
from tests.trainer.test_text_families import rows as texts

pytest.importorskip("torch", reason="PyTorch is not in this environment, but in .venv-pytorch")
pytestmark = pytest.mark.slow


def converts(
    preprocessing: Preprocessing, goal: str, spec: pb.TrainingSpec, inputs: dict[str, Any]
) -> None:
    check(preprocessing, goal, parse_spec(spec).family, inputs, pb.FRAMEWORK_PYTORCH)


@pytest.mark.parametrize(
    ("goal", "spec"),
    [
        pytest.param("labels", tabular(), id="dense"),
        pytest.param("what is normal", spec_of("anomaly_detection"), id="autoencoder"),
    ],
)
def test_tables(goal: str, spec: pb.TrainingSpec) -> None:
    rows = table()
    policy = Imputation.of(pb.MISSING_POLICY_IMPUTE_MEDIAN, Fill())
    converts(fit_columns(TYPES, rows, policy), goal, spec, rows)


def test_users() -> None:
    rows = {"ward": table()["ward"]}
    preprocessing = Numbering.fit("ward", rows["ward"][:, 0])
    spec = spec_of("recommendation", user="ward", item="y")
    converts(preprocessing, "what to recommend", spec, rows)


@pytest.mark.parametrize("size", [(9, 7, 2), (2, 16, 1)], ids=["pooled", "too thin"])
def test_images(size: tuple[int, int, int]) -> None:
    rows = pictures(*size)
    preprocessing = ArrayPreprocessing.fit("image", rows["image"], by_channel=False)
    spec = spec_of("image_classification")
    spec.convolutional.filters.extend([3, 4, 5])
    converts(preprocessing, "classes", spec, rows)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param({"embedding": {"dimension": 5}}, id="embedding"),
        pytest.param({"recurrent": {"units": 6, "bidirectional": True}}, id="two lstms"),
        pytest.param({"recurrent": {"units": 6, "cell": 2, "bidirectional": True}}, id="two grus"),
        pytest.param({"transformer": {"heads": 2, "dimension": 8}}, id="transformer"),
    ],
)
def test_texts_down_to_none(family: dict[str, Any]) -> None:
    spec = text(family, max_tokens=20)
    parsed = parse_spec(spec)
    assert isinstance(parsed.task, TextTask)
    preprocessing = fit_text(parsed.task, parsed.family, texts(*SENTENCES))
    converts(preprocessing, "a number", spec, texts(*ODD, *SENTENCES))


@pytest.mark.parametrize("family", ["convolutional", "recurrent", "transformer"])
def test_sequences(family: str) -> None:
    spec = spec_of("sequence_classification")
    getattr(spec, family).SetInParent()
    rng = np.random.default_rng(7)
    rows = rng.normal([50, -0.1], [20, 0.01], (ROWS, 12, 2)).astype(np.float32)
    preprocessing = ArrayPreprocessing.fit("history", rows, by_channel=True)
    converts(preprocessing, "what comes next", spec, {"history": rows})

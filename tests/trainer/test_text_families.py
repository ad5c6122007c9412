"""Every network for texts: converted for real, and trained on real messages where these are."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import parity
from servery_trainer.fitting import fit_text, vocabulary_size
from servery_trainer.networks import Family
from servery_trainer.sizes import parameter_count
from servery_trainer.spec import parse_spec
from servery_trainer.targets import Classes
from servery_trainer.tasks import TextTask
from tests.trainer.job_process import SuccessiveJobs
from tests.trainer.specs import text

pytestmark = pytest.mark.slow  # and the tests import TensorFlow, not the module: seconds saved

DATA = Path(os.environ.get("SERVERY_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
MESSAGES = DATA / "sms-spam" / "SMSSpamCollection.tsv"

SENTENCES = [
    f"{greeting} {name}, {verb} {thing}!"
    for greeting in ("Hello", "dear", "HI")
    for name in ("Ann", "ben", "Cem")
    for verb in ("bring", "Send", "eat")
    for thing in ("the cake", "cash now\nor never", "")
]
ODD = ["", " ", "unseen words only", "\n\n", "cash " * 3000, "x" * 50_000, "CAKE\u2003🍰", "hello"]


def rows(*texts: str) -> dict[str, Any]:
    return {"sms": np.array([[text] for text in texts], np.object_)}


def check(family: Family, task: TextTask) -> None:
    """Convert an untrained network and compare on sentences of every kind."""
    from servery_trainer import export, problems
    from servery_trainer.keras_framework.framework import Keras

    preprocessing = fit_text(task, family, rows(*SENTENCES))
    arguments = (family, preprocessing.feature_shape, 2, vocabulary_size(preprocessing))
    network = Keras().build(*arguments, seed=1)
    assert network.count_params() == parameter_count(*arguments)
    target = Classes(values=np.arange(2), labels=("ham", "spam"))
    head, objective = problems.pose(target, target.values, parse_spec(text()).training)
    answering = Keras().answering([network], objective)
    graph = parity.Graph(export.to_onnx(answering, preprocessing, head), threads=1)
    inputs = rows(*ODD, *SENTENCES)
    answers = export.predict(answering, preprocessing, inputs)
    assert np.isfinite(answers).all()
    found = parity.check_parity(graph, inputs, head.decode(answers), tolerance=1e-5)
    assert found.label_agreement == 1


@pytest.mark.parametrize(
    "family",
    [
        pytest.param({"dense": {"hidden_units": [5]}}, id="bag of words"),
        pytest.param({"embedding": {"dimension": 5}}, id="embedding"),
        pytest.param({"recurrent": {"units": 6, "dimension": 5}}, id="lstm"),
        pytest.param({"recurrent": {"units": 6, "cell": 2, "bidirectional": True}}, id="two grus"),
        pytest.param({"transformer": {"heads": 2, "dimension": 8}}, id="transformer"),
    ],
)
def test_the_graph_reads_texts_as_the_network_does(family: dict[str, Any]) -> None:
    spec = parse_spec(text(family, max_tokens=20))
    assert isinstance(spec.task, TextTask)
    check(spec.family, spec.task)


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MESSAGES.exists():
        pytest.skip("the SMS Spam Collection is not there; SERVERY_TEST_DATA says where to look")
    path = tmp_path_factory.mktemp("sms") / "sms.csv"
    with path.open("w", newline="") as file, MESSAGES.open(encoding="utf-8") as lines:
        writer = csv.writer(file)
        writer.writerow(["kind", "sms"])
        for line in lines:
            kind, words = line.rstrip("\n").split("\t", 1)
            writer.writerow([kind, words.rstrip("\t").strip('"')])
    return path


def test_spam_is_told_from_messages(jobs: SuccessiveJobs, messages: Path, tmp_path: Path) -> None:
    """Almeida, Gómez Hidalgo and Yamakami (2011) reach an accuracy of 0.9764 with an SVM."""
    spec = text(duplicates=pb.DUPLICATE_POLICY_DROP)
    spec.training.max_epochs = 6
    job = jobs.run(spec, messages, tmp_path / "out")
    assert job.exit == 0, job.lines[-1]
    assert job.result.metrics["accuracy"] >= 0.9764
    assert job.result.parity.label_agreement == 1
    assert job.result.parity.max_relative_error <= 1e-4
    session = ort.InferenceSession(job.out / "model.onnx")
    prize = rows("URGENT! You have won a FREE prize, call now to claim", "ok see you at home", "")
    labels = session.run(["label"], prize)[0].ravel().tolist()
    assert labels == ["spam", "ham", "ham"]

"""Several networks in one graph: it answers with the mean of their answers."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.checkpoints import Checkpoint, CheckpointStore
from servery_trainer.networks import Dense
from servery_trainer.sizes import check_size
from servery_trainer.spec import parse_spec
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import tabular

PENGUINS = Path(__file__).parent / "data" / "penguins.csv"


def spec(seed: int, ensemble_size: int) -> pb.TrainingSpec:
    asked = tabular(target="species", missing=pb.MISSING_POLICY_DROP_ROWS)
    asked.split.seed = 5
    asked.training.MergeFrom(pb.Training(max_epochs=4, seed=seed, ensemble_size=ensemble_size))
    return asked


@pytest.mark.parametrize("size", [-1, 21])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(spec(5, size))
    assert caught.value.metadata["field"] == "training_job.spec.training.ensemble_size"


def test_weights_of_all_networks_count() -> None:
    family = Dense(hidden_units=(4096, 4096), dropout=0)
    check_size((family,), (4096,), 2)
    with pytest.raises(FieldInvalidError):
        check_size((family,) * 10, (4096,), 2)


def test_trainings_that_share_a_directory_keep_apart(tmp_path: Path) -> None:
    for number in (0, 1):
        store = CheckpointStore(tmp_path, "f", number)
        store.save(Checkpoint({"number": number}, {}))
    for number in (0, 1):
        found = CheckpointStore(tmp_path, "f", number).load()
        assert found is not None
        assert found.position == {"number": number}


@pytest.mark.slow
def test_answers_with_the_mean_of_its_networks(jobs: SuccessiveJobs, tmp_path: Path) -> None:
    ran: dict[str, Run] = {}
    for name, seed, size in (("both", 5, 2), ("one", 5, 1), ("other", 6, 1)):
        ran[name] = jobs.run(spec(seed, size), PENGUINS, tmp_path / name)
        assert ran[name].exit == 0, ran[name].lines[-1]
    rows = np.load(ran["both"].out / "golden.npz")
    inputs = {
        name.removeprefix("input:"): rows[name].astype(object)
        if rows[name].dtype.kind == "U"
        else rows[name]
        for name in rows.files
        if name.startswith("input:")
    }
    both, one, other = (
        ort.InferenceSession(job.out / "model.onnx").run(["probabilities"], inputs)[0]
        for job in ran.values()
    )
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)
    told = [line["progress"] for line in ran["both"].lines if "progress" in line]
    assert {line.get("network", 0) for line in told} == {0, 1, 2}

"""Which frameworks a trainer has, and what it says of one that it has not."""

from importlib.util import find_spec
from pathlib import Path

import grpc
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.spec import parse_spec
from tests.trainer.service import failure, running_trainer, spec
from tests.trainer.specs import tabular


def test_it_is_keras_by_default_and_written_out() -> None:
    assert parse_spec(tabular()).to_proto().framework == pb.FRAMEWORK_KERAS


@pytest.mark.parametrize("framework", [3, -1])
def test_one_that_the_contract_does_not_name_is_refused(framework: pb.Framework.ValueType) -> None:
    asked = tabular()
    asked.framework = framework
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(asked)
    assert refused.value.metadata["field"] == "training_job.spec.framework"


def test_modules_of_tenants_build_networks_of_keras_only() -> None:
    asked = tabular()
    asked.framework = pb.FRAMEWORK_PYTORCH
    asked.custom.module = "def build(): ..."
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(asked)
    assert refused.value.metadata["field"] == "training_job.spec.framework"


@pytest.mark.parametrize(
    ("framework", "module", "extra"),
    [
        pytest.param(pb.FRAMEWORK_KERAS, "tensorflow", "trainer", id="no keras"),
        pytest.param(pb.FRAMEWORK_PYTORCH, "torch", "trainer-pytorch", id="no pytorch"),
    ],
)
async def test_one_that_is_not_installed_is_refused_before_training(
    tmp_path: Path,
    command: tuple[str, ...],
    framework: pb.Framework.ValueType,
    module: str,
    extra: str,
) -> None:
    if find_spec(module):
        pytest.skip(f"{module} is installed in this environment; `make test` runs in another too")
    async with running_trainer(tmp_path, command) as client:
        dataset = await client.upload()
        asked = spec(dataset.name, "m")
        asked.framework = framework
        error = await failure(client.create(asked))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata["field"] == "training_job.spec.framework"
    assert f"`{extra}`" in str(error)

"""The files of a version, saved as they were published."""

import asyncio
from pathlib import Path

from servery import Client
from servery.trainer.v1 import training_pb2
from servery_trainer.publisher import RegistryPublisher, dial_registry
from tests.trainer.service import running_registry, write_bundle


async def published() -> bool:
    return True


async def test_a_version_is_saved_with_all_its_files(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    write_bundle(bundle)
    (bundle / "curves.png").write_bytes(bytes(range(256)) * 8192)
    job = training_pb2.TrainingJob(
        name="tenants/default/trainingJobs/a",
        spec=training_pb2.TrainingSpec(
            publication=training_pb2.Publication(model="tenants/default/models/m")
        ),
    )
    (tmp_path / "registry").mkdir()
    with running_registry(tmp_path / "registry") as address:
        async with dial_registry(address) as channel:
            await RegistryPublisher(channel).register(job, bundle, published)
        with Client(address) as client:
            folder = tmp_path / "new" / "saved"
            saved = await asyncio.to_thread(lambda: [*client.models.download("m", 1, folder)])
    assert {path.name: path.read_bytes() for path in saved} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }

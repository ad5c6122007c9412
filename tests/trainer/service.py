"""What the tests of the trainer service share: a trainer, a registry, a client, small real data."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from servery.errors import ApiError
from servery.registry.v1 import registry_pb2_grpc
from servery.trainer.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
    tuning_pb2_grpc,
)
from servery_rpc.identity import CLAIMS_HEADER
from servery_trainer.__main__ import trainer
from servery_trainer.executor import Work
from servery_trainer.resources import Resources
from servery_trainer.settings import TrainerSettings
from servery_trainer.store import queued
from servery_trainer.terms import Capacity, Terms

CAPACITY = Capacity(Resources(cores=2, memory_bytes=8 * 1024**3), parallel_jobs=1)
SCRIPT = Path(__file__).with_name("scripted_job.py")
NOWHERE = "unix:/nonexistent/registry.sock"

ROWS = 60
CSV = (
    "x,y,kind\n" + "".join(f"{i},{i % 7},{['even', 'odd'][i % 2]}\n" for i in range(ROWS))
).encode()


def scripted(bundle: Path) -> tuple[str, ...]:
    """The command of jobs that publish `bundle`."""
    return (sys.executable, "-I", "-S", str(SCRIPT), str(bundle))


def write_bundle(directory: Path) -> None:
    """Write a bundle that the registry takes: a graph that gives back what it gets."""
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", rows[:1], rows[1:])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    tensors = [
        {"name": name, "datatype": "FP32", "shape": [-1, 1], "meaning": "a number"} for name in "xy"
    ]
    signature = {"task": "test", "inputs": tensors[:1], "outputs": tensors[1:]}
    (directory / "signature.json").write_text(json.dumps(signature))
    one = np.ones((1, 1), np.float32)
    arrays: dict[str, Any] = {"input:x": one, "output:y": one, "tolerance": np.float64(1e-6)}
    np.savez(directory / "golden.npz", **arrays)


@dataclass(frozen=True)
class Client:
    """A caller of one trainer; `claims` are those of its key, None for the platform itself."""

    channel: grpc.aio.Channel
    claims: Mapping[str, Any] | None = None

    @property
    def datasets(self) -> dataset_pb2_grpc.DatasetServiceAsyncStub:
        return dataset_pb2_grpc.DatasetServiceStub(self.channel)

    @property
    def jobs(self) -> training_pb2_grpc.TrainingServiceAsyncStub:
        return training_pb2_grpc.TrainingServiceStub(self.channel)

    @property
    def studies(self) -> tuning_pb2_grpc.TuningServiceAsyncStub:
        return tuning_pb2_grpc.TuningServiceStub(self.channel)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        if self.claims is None:
            return []
        claims = base64.urlsafe_b64encode(json.dumps(self.claims).encode()).decode().rstrip("=")
        return [(CLAIMS_HEADER, claims)]

    def key(self, tenant: str = "default", **permissions: Sequence[str]) -> Client:
        """Be the holder of a key of `tenant`."""
        claims = {
            "tenant": tenant,
            "permissions": permissions,
            "sub": f"tenants/{tenant}/apiKeys/k",
        }
        return Client(self.channel, claims)

    async def upload(self, content: bytes = CSV, **header: Any) -> dataset_pb2.Dataset:
        fields: dict[str, Any] = {
            "parent": "tenants/default",
            "format": dataset_pb2.DATASET_FORMAT_CSV,
        } | header
        requests = [
            dataset_pb2.CreateDatasetRequest(
                header=dataset_pb2.CreateDatasetRequest.Header(**fields)
            ),
            *(
                dataset_pb2.CreateDatasetRequest(chunk=content[at : at + 1000])
                for at in range(0, len(content), 1000)
            ),
        ]
        response = await self.datasets.CreateDataset(iter(requests), metadata=self.metadata)
        return response.dataset

    async def create(
        self,
        spec: training_pb2.TrainingSpec,
        parent: str = "tenants/default",
        terms: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> training_pb2.TrainingJob:
        request = training_pb2.CreateTrainingJobRequest(
            parent=parent, training_job=training_pb2.TrainingJob(spec=spec, **terms or {}), **fields
        )
        return (await self.jobs.CreateTrainingJob(request, metadata=self.metadata)).training_job

    async def train(
        self, model: str, terms: Mapping[str, Any] | None = None, **fields: Any
    ) -> training_pb2.TrainingJob:
        """Create a job whose scripted process does what the id `model` says."""
        dataset = await self.upload()
        return await self.create(spec(dataset.name, model, **fields), terms=terms)

    async def get(self, name: str) -> training_pb2.TrainingJob:
        request = training_pb2.GetTrainingJobRequest(name=name)
        return (await self.jobs.GetTrainingJob(request, metadata=self.metadata)).training_job

    async def cancel(self, name: str) -> training_pb2.TrainingJob:
        request = training_pb2.CancelTrainingJobRequest(name=name)
        return (await self.jobs.CancelTrainingJob(request, metadata=self.metadata)).training_job

    def watch(self, name: str, resume_token: str = "") -> Any:
        request = training_pb2.WatchTrainingJobRequest(name=name, resume_token=resume_token)
        return self.jobs.WatchTrainingJob(request, metadata=self.metadata)

    async def events(
        self, name: str, resume_token: str = "", within_s: float = 60
    ) -> list[training_pb2.WatchTrainingJobResponse]:
        """Every event until the job has ended."""
        async with asyncio.timeout(within_s):
            return [event async for event in self.watch(name, resume_token)]

    async def end(self, name: str, within_s: float = 60) -> training_pb2.TrainingJob:
        """The job once it has ended."""
        return (await self.events(name, within_s=within_s))[-1].training_job

    async def until(self, name: str, state: training_pb2.TrainingJobState.ValueType) -> None:
        """Return once the job is in `state`."""
        async with asyncio.timeout(30):
            async for event in self.watch(name):
                if event.training_job.state == state:
                    return
        raise AssertionError(f"{name} ended without being in state {state}")

    async def pid(self, name: str) -> int:
        """The process that the last progress names."""
        async with asyncio.timeout(30):
            async for event in self.watch(name):
                if "pid" in event.progress.metrics:
                    return int(event.progress.metrics["pid"])
        raise AssertionError(f"{name} ended without naming a process")


def spec(dataset: str, model: str, *, alias: str = "", **task: Any) -> training_pb2.TrainingSpec:
    return training_pb2.TrainingSpec(
        dataset=dataset,
        tabular_classification=training_pb2.TabularClassification(**{"target": "kind"} | task),
        publication=training_pb2.Publication(model=f"tenants/default/models/{model}", alias=alias),
    )


def queued_job(
    name: str, at: datetime, spec: training_pb2.TrainingSpec | None = None, **terms: Any
) -> training_pb2.TrainingJob:
    """A job to put in a store."""
    given = Terms(**{"resources": Resources(1, 1024**3)} | terms)
    return queued(name, spec or training_pb2.TrainingSpec(), given, at)


@asynccontextmanager
async def running_trainer(
    data_dir: Path, command: Sequence[str], registry: str = NOWHERE, **settings: Any
) -> AsyncIterator[Client]:
    """Serve a trainer in this process, on a port of its own."""
    given = TrainerSettings(data_dir=data_dir, registry=registry, drain_s=0, **settings)
    async with (
        trainer(given, command) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Client(channel)


@asynccontextmanager
async def killable_trainer(
    directory: Path, bundle: Path, registry: str
) -> AsyncIterator[tuple[Client, subprocess.Popen[bytes]]]:
    """Run a trainer of scripted jobs as a process of its own, killed when the block is left."""
    program = Path(__file__).with_name("scripted_trainer.py")
    address = f"unix:{directory / 's'}"
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 it returns at once
            [
                *(sys.executable, str(program), str(bundle)),
                *("--data-dir", str(directory / "data"), "--registry", registry),
                *("--listen", address),
            ],
            stderr=log,
        )
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                await asyncio.wait_for(channel.channel_ready(), 30)
                yield Client(channel), process
        finally:
            process.kill()
            await asyncio.to_thread(process.wait, 10)


@contextmanager
def running_registry(directory: Path) -> Iterator[str]:
    """Run a registry process on `directory`; yields its address once it answers."""
    address = f"unix:{directory / 's'}"
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "servery_registry"),
                *("--listen", address, "--data-dir", str(directory / "data"), "--drain-s", "0"),
            ],
            stderr=log,
        )
        try:
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(30)
            yield address
        finally:
            process.terminate()
            process.wait(30)


@asynccontextmanager
async def registry_client(
    address: str,
) -> AsyncIterator[registry_pb2_grpc.RegistryServiceAsyncStub]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield registry_pb2_grpc.RegistryServiceStub(channel)


async def failure(call: Any) -> ApiError:
    """What the failed call says."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return ApiError.of(caught.value)


async def ready(work: Work) -> None:
    """What a scheduler waits for before it starts a process: nothing."""


async def until(holds: Callable[[], bool]) -> None:
    """Return once a condition outside this process holds."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 nothing tells of it
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

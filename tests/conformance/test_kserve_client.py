"""KServe's own client, unmodified, in `.venv-kserve`, which `make test` makes.

It brings a copy of the protocol's messages that differs from ours (fewer kinds of parameters, other
field numbers in the messages of the repository).
"""

import asyncio
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.serving import serving
from tests.inference import graphs

PYTHON: Final = Path(__file__).parents[2] / ".venv-kserve" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,  # It imports Kubernetes, pandas and a web server.
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-kserve: run through `make test`"),
]

HEALTH_AND_INFER: Final = """
import asyncio, sys
import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

def tensor(name, array, datatype):
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made

async def main(address):
    async with InferenceGRPCClient(address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("simple")
        assert not await client.is_model_ready("nope")

        a, b = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)
        request = InferRequest(
            "simple", [tensor("a", a, "INT32"), tensor("b", b, "INT32")], request_id="7"
        )
        answer = await client.infer(request)
        assert (answer.id, answer.model_name, answer.model_version) == ("7", "simple", "1")
        outputs = {output.name: output.as_numpy() for output in answer.outputs}
        np.testing.assert_array_equal(outputs["sum"], a + b)
        np.testing.assert_array_equal(outputs["difference"], a - b)

        for dtype, datatype in (("f2", "FP16"), ("f4", "FP32"), ("?", "BOOL")):
            x = np.array([[0, 1], [1, 1]], dtype)
            name = "identity_" + datatype.lower()
            answer = await client.infer(InferRequest(name, [tensor("x", x, datatype)]))
            np.testing.assert_array_equal(answer.outputs[0].as_numpy(), x)

        typed = InferInput("x", [1, 2], "FP32", data=[1.5, 2.5])
        answer = await client.infer(InferRequest("identity_fp32", [typed]))
        np.testing.assert_array_equal(answer.outputs[0].as_numpy(), [[1.5, 2.5]])

        texts = np.array([["a", "b\\u00e9"]], object)
        answer = await client.infer(InferRequest("identity_bytes", [tensor("x", texts, "BYTES")]))
        read = [item.decode() if isinstance(item, bytes) else item
                for item in answer.outputs[0].as_numpy().ravel()]
        assert read == ["a", "b\\u00e9"], read

        try:
            await client.infer(InferRequest("simple", [tensor("a", a, "INT32")]))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        else:
            raise AssertionError("a missing input was accepted")

    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        server = await stub.ServerMetadata(pb.ServerMetadataRequest())
        assert server.name == "servery" and server.version
        model = await stub.ModelMetadata(pb.ModelMetadataRequest(name="simple"))
        assert model.name == "simple" and list(model.versions) == ["1"]
        assert [tensor.name for tensor in model.inputs] == ["a", "b"]
        assert [tensor.datatype for tensor in model.outputs] == ["INT32", "INT32"]

asyncio.run(main(sys.argv[1]))
"""

LOAD_AND_UNLOAD: Final = """
import asyncio, sys
import grpc
from kserve import InferenceGRPCClient
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

async def main(address):
    channel = grpc.aio.insecure_channel(address)
    async with channel, InferenceGRPCClient(address) as client:
        stub = GRPCInferenceServiceStub(channel)
        assert not await client.is_model_ready("simple")
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="simple"))
        assert await client.is_model_ready("simple")
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="simple"))
        assert not await client.is_model_ready("simple")

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for datatype in ("BOOL", "FP16", "FP32", "BYTES"):
        name = f"identity_{datatype.lower()}"
        graphs.store(tmp_path / "models", name, graphs.identity(datatype))
    graphs.store(tmp_path / "models", "simple", graphs.add_and_subtract())
    return tmp_path / "models"


async def test_health_metadata_and_inference(root: Path, tmp_path: Path) -> None:
    async with serving(root, tmp_path):
        await run(HEALTH_AND_INFER, f"unix:{tmp_path}/inference.sock")


async def test_models_come_and_go(root: Path, tmp_path: Path) -> None:
    async with serving(root, tmp_path, "--model-control-mode", "explicit"):
        await run(LOAD_AND_UNLOAD, f"unix:{tmp_path}/inference.sock")


async def run(program: str, address: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, "-W", "ignore", "-c", program, address),
        env={},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, output.decode()[-4000:]

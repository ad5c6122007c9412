"""The inference process on a GPU, beside ONNX Runtime with IO binding in this process.

Builds a graph with the layers of ResNet-50 and random weights, in FP32 and in FP16, and measures
images per second in interleaved rounds: `run_with_iobinding` alone here, images copied to the
device and answers back each time, and the server under a few callers, each of which has its batch
in system shared memory. Asked for are 95 % of the throughput in process.

    python bench/inference_gpu.py [--batch 32] [--callers 4] [--seconds 5] [--rounds 3] [--graphs]

Without a GPU it says why it does not measure, and ends well. `--device cpu` measures there, to try
the program itself: nothing that it prints then means anything.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import onnxruntime as ort
from inference_small import METHOD, running, until_answered, write
from onnx import TensorProto, helper, numpy_helper, save_model

from servery.inference.v1 import grpc_service_pb2 as pb

IMAGE: Final = (3, 224, 224)
CLASSES: Final = 1000
STAGES: Final = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Bottleneck blocks and inner channels of each stage; four times as many channels come out."""

TARGET: Final = 0.95
DTYPES: Final = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
PROVIDERS: Final = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
REGISTER: Final = "/inference.GRPCInferenceService/SystemSharedMemoryRegister"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=PROVIDERS, default="cuda")
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=32, help="images of one request")
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each side and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--graphs", action="store_true", help="let the server record CUDA graphs")
    args = parser.parse_args(argv)
    if PROVIDERS[args.device] not in ort.get_available_providers():
        write(
            f"not measured: the installed ONNX Runtime was built without {PROVIDERS[args.device]};"
            " install servery[inference-gpu] in an environment of its own, on a machine with a GPU"
        )
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for precision in args.precision:
            graph = Path(folder) / "models" / precision / "1" / "model.onnx"
            graph.parent.mkdir(parents=True)
            save_resnet(graph, DTYPES[precision])
            (graph.parent.parent / "config.pbtxt").write_text(config(args))
        if not is_usable(args.device, graph):
            write(f"not measured: {PROVIDERS[args.device]} finds no GPU that it can use")
            return 0
        asyncio.run(measure(Path(folder), args))
    return 0


def is_usable(device: str, graph: Path) -> bool:
    """Tell whether a device that ONNX Runtime was built for is there."""
    if device == "cuda":
        ort.preload_dlls()
    session = ort.InferenceSession(graph, providers=[PROVIDERS[device]])
    return PROVIDERS[device] in session.get_providers()


def config(args: argparse.Namespace) -> str:
    """The config.pbtxt of the models."""
    kind = "KIND_GPU" if args.device == "cuda" else "KIND_CPU"
    text = f"max_batch_size: {args.batch}\ninstance_group {{ kind: {kind} }}\n"
    if args.graphs:
        text += (
            f"optimization {{ cuda {{ graphs: true graph_spec {{ batch_size: {args.batch} }} }} }}"
        )
    return text


async def measure(folder: Path, args: argparse.Namespace) -> None:
    """Run the rounds and print the tables."""
    address = f"unix:{folder}/i.sock"
    command = [
        *("-m", "servery_inference", "--model-repository", str(folder / "models")),
        *("--listen", address, "--transport", "fast", "--shared-memory", "true"),
        *("--execution-provider", args.device, "--log-level", "error"),
    ]
    with ExitStack() as stack:
        stack.enter_context(running(command))
        for precision in args.precision:
            dtype = DTYPES[precision]
            images = np.random.default_rng(0).random((args.batch, *IMAGE)).astype(dtype)
            regions = [stack.enter_context(region(images)) for _ in range(args.callers)]
            async with grpc.aio.insecure_channel(address) as channel:
                warm = request(precision, images[:1], None)
                await until_answered(address, warm.SerializeToString(), None)
                for key in regions:
                    await register(channel, key, images.nbytes)
                graph = folder / "models" / precision / "1" / "model.onnx"
                bound = Bound(graph, args.device, images)
                rates: dict[str, list[float]] = {"in process": [], "server": []}
                for _ in range(args.rounds):
                    rates["in process"].append(bound.rate(args.seconds))
                    bodies = [
                        request(precision, images, key).SerializeToString() for key in regions
                    ]
                    rates["server"].append(await served(channel, bodies, args.batch, args.seconds))
            write(
                f"{precision} on {args.device}: batches of {args.batch}, {args.callers} callers,"
                f" {args.rounds} rounds of {args.seconds:g} s"
            )
            medians = {name: statistics.median(values) for name, values in rates.items()}
            for name, values in rates.items():
                write(
                    f"{name:12} {medians[name]:10.0f} images/s"
                    f" (from {min(values):.0f} to {max(values):.0f})"
                )
            share = medians["server"] / medians["in process"]
            verdict = "as asked" if share >= TARGET else "less than asked"
            write(f"server, of what is done in process: {share:.1%}, {verdict}")


class Bound:
    """The graph in this process, its tensors at fixed places of the device."""

    def __init__(self, graph: Path, device: str, images: np.ndarray[Any, Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        providers = list(dict.fromkeys([PROVIDERS[device], PROVIDERS["cpu"]]))
        self._session = ort.InferenceSession(graph, options, providers=providers)
        self._images = images
        value = ort.OrtValue.ortvalue_from_shape_and_type
        self._input = value(images.shape, images.dtype, device, 0)
        self._output = value((len(images), CLASSES), images.dtype, device, 0)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("x", self._input)
        self._binding.bind_ortvalue_output("y", self._output)
        self._run()

    def rate(self, seconds: float) -> float:
        """Return images per second."""
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            self._run()
            count += len(self._images)
        return count / (time.perf_counter() - start)

    def _run(self) -> None:
        self._input.update_inplace(self._images)
        self._session.run_with_iobinding(self._binding)
        self._output.numpy()


async def served(
    channel: grpc.aio.Channel, bodies: Sequence[bytes], batch: int, seconds: float
) -> float:
    """Return images per second of the server, each caller sending its request again and again."""
    call: Any = channel.unary_unary(METHOD)
    start = time.perf_counter()
    counts = [0] * len(bodies)

    async def one_after_the_other(caller: int) -> None:
        while time.perf_counter() - start < seconds:
            await call(bodies[caller])
            counts[caller] += batch

    await asyncio.gather(*map(one_after_the_other, range(len(bodies))))
    return sum(counts) / (time.perf_counter() - start)


def request(model: str, images: np.ndarray[Any, Any], key: str | None) -> pb.ModelInferRequest:
    """A request with its images in a region of shared memory, or in itself."""
    made = pb.ModelInferRequest(model_name=model)
    datatype = {2: "FP16", 4: "FP32"}[images.itemsize]
    tensor = made.inputs.add(name="x", datatype=datatype, shape=images.shape)
    if key is None:
        made.raw_input_contents.append(images.tobytes())
    else:
        tensor.parameters["shared_memory_region"].string_param = key
        tensor.parameters["shared_memory_byte_size"].int64_param = images.nbytes
    return made


async def register(channel: grpc.aio.Channel, key: str, num_bytes: int) -> None:
    """Make a region known to the server."""
    asked = pb.SystemSharedMemoryRegisterRequest(name=key, key=f"/{key}", byte_size=num_bytes)
    call: Any = channel.unary_unary(REGISTER)
    await call(asked.SerializeToString())


@contextmanager
def region(images: np.ndarray[Any, Any]) -> Iterator[str]:
    """Have the images in shared memory for the length of the block; give the name of the region."""
    memory = SharedMemory(create=True, size=images.nbytes)
    try:
        memory.buf[: images.nbytes] = images.tobytes()
        yield memory.name
    finally:
        memory.close()
        memory.unlink()


def save_resnet(path: Path, dtype: np.dtype[Any]) -> None:
    """Write the graph: normalisation is folded into the convolutions, as exporters do."""
    builder = Builder(dtype)
    last = builder.conv("x", IMAGE[0], 64, 7, 2)
    last = builder.add("MaxPool", [last], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (blocks, inner) in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            short = (
                last if block else builder.conv(last, channels, 4 * inner, 1, stride, relu=False)
            )
            last = builder.conv(last, channels, inner, 1, 1)
            last = builder.conv(last, inner, inner, 3, stride)
            last = builder.conv(last, inner, 4 * inner, 1, 1, relu=False)
            last = builder.add("Relu", [builder.add("Add", [last, short])])
            channels = 4 * inner
    last = builder.add("Flatten", [builder.add("GlobalAveragePool", [last])])
    weights = [builder.weight(channels, CLASSES), builder.weight(CLASSES)]
    builder.nodes.append(helper.make_node("Gemm", [last, *weights], ["y"]))
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    tensors = [
        helper.make_tensor_value_info("x", kind, ["n", *IMAGE]),
        helper.make_tensor_value_info("y", kind, ["n", CLASSES]),
    ]
    graph = helper.make_graph(builder.nodes, "resnet", tensors[:1], tensors[1:], builder.weights)
    opsets = [helper.make_opsetid("", 18)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


class Builder:
    """Nodes and random weights of a graph."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.nodes: list[Any] = []
        self.weights: list[TensorProto] = []
        self._dtype = dtype
        self._random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        """Add a weight, small enough for FP16 to hold what comes of it; return its name."""
        name = f"w{len(self.weights)}"
        scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        values = (self._random.standard_normal(shape) * scale).astype(self._dtype)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def conv(
        self, source: str, channels: int, filters: int, size: int, stride: int, *, relu: bool = True
    ) -> str:
        """Add a convolution; return the name of its output."""
        made = self.add(
            "Conv",
            [source, self.weight(filters, channels, size, size), self.weight(filters)],
            strides=[stride, stride],
            pads=[size // 2] * 4,
        )
        return self.add("Relu", [made]) if relu else made


if __name__ == "__main__":
    sys.exit(main())

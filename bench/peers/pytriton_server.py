"""NVIDIA's pytriton with a Python callable as its documentation shows one: batched by Triton.

python pytriton_server.py --models DIR --grpc-port P --http-port H
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

Array = NDArray[np.float32]


def callable_of(session: ort.InferenceSession) -> Callable[..., list[Array]]:
    """Wrap a session as pytriton calls it."""

    @batch
    def infer(x: Array) -> list[Array]:
        return session.run(["y"], {"x": x})

    return infer


def main() -> None:
    """Serve every model of a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    args = parser.parse_args()
    config = TritonConfig(
        grpc_port=args.grpc_port, http_port=args.http_port, allow_metrics=False, log_verbose=0
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    with Triton(config=config) as triton:
        for path in sorted(args.models.glob("*/1/model.onnx")):
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            triton.bind(
                model_name=path.parents[1].name,
                infer_func=callable_of(session),
                inputs=[
                    Tensor(name="x", dtype=np.float32, shape=session.get_inputs()[0].shape[1:])
                ],
                outputs=[
                    Tensor(name="y", dtype=np.float32, shape=session.get_outputs()[0].shape[1:])
                ],
                config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
            )
        triton.serve()


if __name__ == "__main__":
    main()

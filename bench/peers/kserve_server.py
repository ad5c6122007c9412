"""KServe's Python server with a custom model as its documentation shows one.

python kserve_server.py --models DIR --grpc-port P --http-port H
"""

import argparse
from pathlib import Path
from typing import Any

import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    """Serves one graph on one thread."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self._path = path
        self.load()

    def load(self) -> bool:
        """Open the graph."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            self._path, options, providers=["CPUExecutionProvider"]
        )
        self.ready = True
        return self.ready

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        """Run it."""
        feed = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        (answer,) = self._session.run(["y"], feed)
        output = InferOutput("y", list(answer.shape), "FP32")
        output.set_data_from_numpy(answer)
        return InferResponse(payload.id or "1", self.name, [output])


def main() -> None:
    """Serve every model of a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    args = parser.parse_args()
    models = [
        OnnxModel(path.parents[1].name, path) for path in sorted(args.models.glob("*/1/model.onnx"))
    ]
    ModelServer(
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        enable_grpc=True,
        access_log_format=None,
    ).start(models)


if __name__ == "__main__":
    main()

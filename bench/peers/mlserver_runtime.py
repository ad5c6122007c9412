"""A custom runtime for MLServer as its documentation shows one: an ONNX graph on one thread."""

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    """Serves the file that `parameters.uri` names."""

    async def load(self) -> bool:
        """Open the graph."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run it."""
        feed = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        (answer,) = self._session.run(["y"], feed)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("y", answer)]
        )

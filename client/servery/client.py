"""The SDK: one object for everything a key may do."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike, NDArray

from servery.billing import Billing
from servery.connection import Connection, Identity
from servery.datasets import Datasets
from servery.errors import ApiError
from servery.identities import Identities
from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import grpc_service_pb2_grpc as pb_grpc
from servery.jobs import Jobs
from servery.keys import Keys
from servery.models import Models
from servery.quotas import Quotas
from servery.routes import Routes
from servery.tenants import Tenants
from servery.tensors import from_output, to_input
from servery.tuning import Studies
from servery.usage import Usage


class Client:
    """A connection to Servery. Use it in a `with` block, from as many threads as you like.

    Calls raise `ApiError` when the server refuses them or cannot be reached; a call is tried again
    only while the server is unavailable.

    Args:
        address: `host:port` of the gateway.
        api_key: The secret, `sk-…`.
        token: Instead of a key, a token of Servery or of the company's issuer.
        certificate_chain: Instead of both, PEM bytes of a certificate that the gateway knows.
        private_key: PEM bytes of its key.
        tenant: Resource name, for who has neither a key nor a token of Servery; None means
            `tenants/default`.
        root_certificates: PEM bytes that the server's certificate is checked against; turns TLS on.
        timeout_s: How long one call may take, uploads and watches apart.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        *,
        token: str | None = None,
        certificate_chain: bytes | None = None,
        private_key: bytes | None = None,
        tenant: str | None = None,
        root_certificates: bytes | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        identity = Identity(
            api_key=api_key,
            token=token,
            certificate_chain=certificate_chain,
            private_key=private_key,
            tenant=tenant,
        )
        self._connection = Connection(address, identity, root_certificates, timeout_s)
        self._inference = pb_grpc.GRPCInferenceServiceStub(self._connection.channel)
        self._metadata: dict[tuple[str, str], pb.ModelMetadataResponse] = {}
        self.billing = Billing(self._connection)
        self.datasets = Datasets(self._connection)
        self.identities = Identities(self._connection)
        self.jobs = Jobs(self._connection)
        self.keys = Keys(self._connection)
        self.models = Models(self._connection)
        self.studies = Studies(self._connection)
        self.quotas = Quotas(self._connection)
        self.routes = Routes(self._connection)
        self.tenants = Tenants(self._connection)
        self.usage = Usage(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        self._connection.close()

    @property
    def tenant(self) -> str:
        """Resource name of the caller's tenant."""
        return self._connection.tenant

    def predict(
        self, model: str, inputs: Mapping[str, ArrayLike], *, version: str = ""
    ) -> dict[str, NDArray[Any]]:
        """Run a model.

        Args:
            model: Its id.
            inputs: One array or list for each input, the same number of rows in each.
            version: Its number; empty means what the alias `production` points at.

        Returns:
            Every output by name, the batch first; texts as `str` objects.

        Raises:
            ValueError: An input is missing, unknown, or does not fit.
            ApiError: The server refused the call.
        """
        return self._infer(model, inputs, version, explain=False)

    def explain(
        self, model: str, inputs: Mapping[str, ArrayLike], *, version: str = ""
    ) -> dict[str, NDArray[Any]]:
        """Ask why a model answers as it does.

        Args: See `predict`.

        Returns:
            What the version tells of its answers, by name, the batch first. Models trained by
            Servery give `attribution.{input}`: what each value of the input adds to the answer.

        Raises:
            ValueError: An input is missing, unknown, or does not fit.
            ApiError: The server refused the call: EXPLANATION_UNAVAILABLE if the version cannot
                explain its answers.
        """
        return self._infer(model, inputs, version, explain=True)

    def _infer(
        self, model: str, inputs: Mapping[str, ArrayLike], version: str, *, explain: bool
    ) -> dict[str, NDArray[Any]]:
        metadata = self.model_metadata(model, version=version)
        wanted = {tensor.name: tensor for tensor in metadata.inputs}
        if wanted.keys() != inputs.keys():
            missing = sorted(wanted.keys() - inputs.keys()) or "none"
            unknown = sorted(inputs.keys() - wanted.keys()) or "none"
            raise ValueError(f"inputs of {model!r}: missing {missing}; unknown {unknown}")
        request = pb.ModelInferRequest(model_name=metadata.name, model_version=version)
        if explain:
            request.parameters["explain"].bool_param = True
        for name, values in inputs.items():
            tensor, raw = to_input(name, values, wanted[name].datatype, wanted[name].shape)
            request.inputs.append(tensor)
            request.raw_input_contents.append(raw)
        try:
            response = self._connection.unary(self._inference.ModelInfer, request)
        except ApiError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                self._metadata.clear()  # Perhaps production moved to a version of another shape.
            raise
        contents = response.raw_output_contents
        return {
            tensor.name: from_output(tensor, raw)
            for tensor, raw in zip(response.outputs, contents, strict=True)
        }

    def is_served(self, model: str, *, version: str = "") -> bool:
        """Tell whether a version of a model answers now; see `predict` for the arguments."""
        request = pb.ModelReadyRequest(name=self._wire_name(model), version=version)
        return bool(self._connection.unary(self._inference.ModelReady, request).ready)

    def model_metadata(self, model: str, *, version: str = "") -> pb.ModelMetadataResponse:
        """Return the inputs and outputs of a served model; asked once, then remembered."""
        key = (model, version)
        if key not in self._metadata:
            request = pb.ModelMetadataRequest(name=self._wire_name(model), version=version)
            self._metadata[key] = self._connection.unary(self._inference.ModelMetadata, request)
        return self._metadata[key]

    def _wire_name(self, model: str) -> str:
        tenant = self.tenant.removeprefix("tenants/")
        return model if tenant == "default" else f"{tenant}.{model}"

"""Models in the registry: what versions there are, and which one is production."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from servery.connection import Connection
from servery.errors import ApiError
from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc


class Models:
    """The models of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.RegistryServiceStub(connection.channel)

    def name(self, model: str) -> str:
        """Return the resource name of a model id; a resource name is returned as it is."""
        return model if "/" in model else f"{self._connection.tenant}/models/{model}"

    def version_name(self, text: str) -> str:
        """Return the resource name behind `MODEL@VERSION`; a resource name is returned as it is.

        VERSION is a number or an alias; without one it is the alias `production`.
        """
        if "/" in text:
            return text
        model, _, version = text.partition("@")
        kind = "versions" if version.isdecimal() else "aliases"
        return f"{self.name(model)}/{kind}/{version or 'production'}"

    def get(self, model: str) -> pb.Model:
        """Return a model with its aliases, by id or resource name."""
        request = pb.GetModelRequest(name=self.name(model))
        return self._connection.unary(self._stub.GetModel, request).model

    def list(self) -> Iterator[pb.Model]:
        """Yield every model, by name."""
        request = pb.ListModelsRequest(parent=self._connection.tenant)
        while True:
            page = self._connection.unary(self._stub.ListModels, request)
            yield from page.models
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def versions(self, model: str) -> Iterator[pb.Version]:
        """Yield every version of a model, the newest first."""
        request = pb.ListVersionsRequest(parent=self.name(model))
        while True:
            page = self._connection.unary(self._stub.ListVersions, request)
            yield from page.versions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def version(self, model: str, number: int) -> pb.Version:
        """Return one version with its files."""
        request = pb.GetVersionRequest(name=f"{self.name(model)}/versions/{number}")
        return self._connection.unary(self._stub.GetVersion, request).version

    def read_file(self, version: str, path: str) -> bytes:
        """Return the bytes of one file of a version (resource name), such as `metrics.json`."""
        request = pb.ReadFileRequest(name=version, path=path)
        parts = self._connection.stream(self._stub.ReadFile, request)
        return b"".join(part.chunk for part in parts)

    def download(self, model: str, number: int, directory: Path) -> Iterator[Path]:
        """Save the files of a version in `directory`, made if missing, and yield each when it is.

        Raises:
            ValueError: A file arrived otherwise than it was published.
            OSError: A file cannot be written.
        """
        version = self.version(model, number)
        directory.mkdir(parents=True, exist_ok=True)
        for file in version.files:
            content = self.read_file(version.name, file.path)
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise ValueError(f"{file.path} did not arrive as it was published; try again")
            path = directory / Path(file.path).name
            path.write_bytes(content)
            yield path

    def promote(self, model: str, number: int, alias: str = "production") -> pb.Alias:
        """Point an alias at a version: promotion, or rollback to an older one.

        Raises:
            ApiError: ETAG_MISMATCH if somebody else moved the alias at the same time.
        """
        name = f"{self.name(model)}/aliases/{alias}"
        try:
            request = pb.GetAliasRequest(name=name)
            etag = self._connection.unary(self._stub.GetAlias, request).alias.etag
        except ApiError as error:
            if error.reason != "ERROR_REASON_ALIAS_NOT_FOUND":
                raise
            etag = ""
        moved = pb.Alias(name=name, version=f"{self.name(model)}/versions/{number}", etag=etag)
        return self._connection.unary(self._stub.SetAlias, pb.SetAliasRequest(alias=moved)).alias

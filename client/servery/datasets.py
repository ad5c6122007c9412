"""Datasets: upload a file, see what is in it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from servery.connection import Connection
from servery.trainer.v1 import dataset_pb2 as pb
from servery.trainer.v1 import dataset_pb2_grpc as pb_grpc

FORMATS: Final = {
    ".csv": pb.DATASET_FORMAT_CSV,
    ".jsonl": pb.DATASET_FORMAT_JSON_LINES,
    ".npz": pb.DATASET_FORMAT_NPZ,
    ".parquet": pb.DATASET_FORMAT_PARQUET,
}
"""File name suffix to the format it means."""

CHUNK_BYTES: Final = 1 << 20
"""Largest piece of a file that the servers take."""

_UPLOAD_TIMEOUT_S: Final = 3600.0


class Datasets:
    """The datasets of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.DatasetServiceStub(connection.channel)

    def upload(self, path: Path) -> pb.Dataset:
        """Store the file at `path` as a dataset; its suffix says how it is read, see `FORMATS`.

        Raises:
            ValueError: The name has another suffix.
            OSError: The file cannot be read.
            ApiError: The server refuses the file and says which row or column is wrong.
        """
        if path.suffix.lower() not in FORMATS:
            raise ValueError(f"{path.name}: a dataset is a file ending in {' or '.join(FORMATS)}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        header = pb.CreateDatasetRequest.Header(
            parent=self._connection.tenant,
            format=FORMATS[path.suffix.lower()],
            display_name=path.name[:200],
            sha256=digest,
        )

        def requests() -> Iterator[pb.CreateDatasetRequest]:
            yield pb.CreateDatasetRequest(header=header)
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield pb.CreateDatasetRequest(chunk=chunk)

        return self._connection.unary(
            self._stub.CreateDataset, requests(), timeout_s=_UPLOAD_TIMEOUT_S
        ).dataset

    def get(self, name: str) -> pb.Dataset:
        """Return the dataset of this resource name."""
        return self._connection.unary(
            self._stub.GetDataset, pb.GetDatasetRequest(name=name)
        ).dataset

    def list(self) -> Iterator[pb.Dataset]:
        """Yield every dataset, the newest first."""
        request = pb.ListDatasetsRequest(parent=self._connection.tenant)
        while True:
            page = self._connection.unary(self._stub.ListDatasets, request)
            yield from page.datasets
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

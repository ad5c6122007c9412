"""Datasets: upload files, see what is in them, and what is wrong with them."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import grpc

from servery.connection import Connection
from servery.errors import ApiError
from servery.packing import Packed, packed
from servery.trainer.v1 import dataset_pb2 as pb
from servery.trainer.v1 import dataset_pb2_grpc as pb_grpc

CHUNK_BYTES: Final = 1 << 20
"""Largest piece of a file that the servers take."""

_UPLOAD_TIMEOUT_S: Final = 3600.0
_MOST_BREAKS: Final = 6  # in a row, without a byte that came through
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)


class Datasets:
    """The datasets of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.DatasetServiceStub(connection.channel)

    def upload(
        self,
        *paths: Path,
        column_types: Mapping[str, pb.ColumnType.ValueType] | None = None,
    ) -> pb.Dataset:
        """Store what lies at `paths` as a dataset; see `packing.packed` for what that may be.

        An upload that broke off, in this call or an earlier one, goes on where it broke off. Bytes
        that the server has are not sent.

        Args:
            paths: A file, a folder, or two IDX files.
            column_types: Of the columns of a table that are to be what they do not look like.

        Raises:
            ValueError: They are nothing that can be a dataset.
            OSError: A file cannot be read.
            ApiError: The server refuses the file and says which row, column or file is wrong.
        """
        with packed(paths) as file:
            with file.path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            header = pb.CreateDatasetRequest.Header(
                parent=self._connection.tenant,
                format=file.format,
                display_name=file.display_name,
                sha256=digest,
                column_types=column_types,
            )
            stored = self._stored(header)
            return stored or self._send(header, file)

    def get(self, name: str) -> pb.Dataset:
        """Return the dataset of this resource name."""
        return self._connection.unary(
            self._stub.GetDataset, pb.GetDatasetRequest(name=name)
        ).dataset

    def find(self, dataset: str) -> pb.Dataset:
        """Return a dataset by its resource name, its id, or how its id begins.

        Raises:
            ValueError: No or more than one dataset is called so.
            ApiError: There is none of this name.
        """
        if "/" in dataset:
            return self.get(dataset)
        found = [
            stored for stored in self.list() if stored.name.rpartition("/")[2].startswith(dataset)
        ]
        if len(found) != 1 or not dataset:
            raise ValueError(f"{len(found)} datasets are called {dataset!r}; see the list of them")
        return found[0]

    def list(self) -> Iterator[pb.Dataset]:
        """Yield every dataset, the newest first."""
        request = pb.ListDatasetsRequest(parent=self._connection.tenant)
        while True:
            page = self._connection.unary(self._stub.ListDatasets, request)
            yield from page.datasets
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def validate(self, request: pb.ValidateDatasetRequest) -> pb.ValidateDatasetResponse:
        """Return what of a dataset is likely to spoil a model, the worst first."""
        return self._connection.unary(
            self._stub.ValidateDataset, request, timeout_s=_UPLOAD_TIMEOUT_S
        )

    def _stored(self, header: pb.CreateDatasetRequest.Header) -> pb.Dataset | None:
        try:
            stored = self.get(f"{header.parent}/datasets/{header.sha256}")
        except ApiError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        types = {column.name: column.type for column in stored.columns}
        same = stored.format == header.format and header.column_types.items() <= types.items()
        return stored if same else None  # the server says what is different

    def _send(self, header: pb.CreateDatasetRequest.Header, file: Packed) -> pb.Dataset:
        size = file.path.stat().st_size
        request = pb.CreateUploadRequest(header=header, size_bytes=size)
        upload = self._connection.unary(self._stub.CreateUpload, request).upload
        breaks = 0
        while upload.received_bytes < size:
            try:
                upload = self._connection.unary(
                    self._stub.AppendUpload,
                    _pieces(upload, file.path),
                    timeout_s=_UPLOAD_TIMEOUT_S,
                ).upload
            except ApiError as error:
                if error.code not in _PASSING:
                    raise
                before, upload = upload.received_bytes, self._lookup(upload.name)
                breaks = breaks + 1 if upload.received_bytes <= before else 0
                if breaks == _MOST_BREAKS:
                    raise
                time.sleep(0.1 * 2**breaks)
        done = pb.CompleteUploadRequest(name=upload.name)
        try:
            return self._connection.unary(
                self._stub.CompleteUpload, done, timeout_s=_UPLOAD_TIMEOUT_S
            ).dataset
        except ApiError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            stored = self._stored(header)  # An earlier try got through; only its answer was lost.
            if stored is None:
                raise
            return stored

    def _lookup(self, name: str) -> pb.Upload:
        request = pb.GetUploadRequest(name=name)
        return self._connection.unary(self._stub.GetUpload, request).upload


def _pieces(upload: pb.Upload, path: Path) -> Iterator[pb.AppendUploadRequest]:
    position = pb.AppendUploadRequest.Position(name=upload.name, offset=upload.received_bytes)
    yield pb.AppendUploadRequest(position=position)
    with path.open("rb") as file:
        file.seek(upload.received_bytes)
        while chunk := file.read(CHUNK_BYTES):
            yield pb.AppendUploadRequest(chunk=chunk)

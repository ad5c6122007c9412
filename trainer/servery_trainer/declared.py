"""What the uploader of a table said that columns are: kept beside the file, for all who read it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from servery.trainer.v1 import dataset_pb2 as pb

_SUFFIX: Final = ".types"


def write_types(path: Path, column_types: Mapping[str, pb.ColumnType.ValueType]) -> None:
    """Keep the types that were declared for columns of the table at `path`; none: no file."""
    kept = path.with_name(path.name + _SUFFIX)
    if column_types:
        header = pb.CreateDatasetRequest.Header(column_types=column_types)
        kept.write_bytes(header.SerializeToString())
    else:
        kept.unlink(missing_ok=True)


def read_types(path: Path) -> dict[str, pb.ColumnType.ValueType]:
    """Return the types that were declared for columns of the table at `path`."""
    try:
        content = path.with_name(path.name + _SUFFIX).read_bytes()
    except FileNotFoundError:
        return {}
    return dict(pb.CreateDatasetRequest.Header.FromString(content).column_types)

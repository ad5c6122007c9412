"""Rows of the database as values, and back."""

from collections.abc import Sequence
from typing import Any

from servery_registry.store import Change
from servery_registry.version import Alias, File, Model, Version
from servery_rpc.names import AliasName, ModelName, VersionName


def model(row: Any, aliases: Sequence[Any]) -> Model:
    """Read a row of `models` and the rows of its aliases."""
    return Model(
        name=ModelName(row.tenant, row.model),
        create_time=row.create_time,
        latest_version=row.latest_version,
        aliases=tuple(alias(a) for a in aliases),
    )


def version(row: Any) -> Version:
    """Read a row of `versions`."""
    return Version(
        name=VersionName(ModelName(row.tenant, row.model), row.number),
        files=tuple(File(*file) for file in row.files),
        metrics=row.metrics,
        digest=row.digest,
        create_time=row.create_time,
    )


def of_version(version: Version) -> dict[str, Any]:
    """Write a row of `versions`."""
    return {
        "tenant": version.name.model.tenant,
        "model": version.name.model.model,
        "number": version.name.number,
        "digest": version.digest,
        "files": [[f.path, f.size_bytes, f.sha256] for f in version.files],
        "metrics": dict(version.metrics),
        "create_time": version.create_time,
    }


def alias(row: Any) -> Alias:
    """Read a row of `aliases`."""
    return Alias(
        name=AliasName(ModelName(row.tenant, row.model), row.alias),
        number=row.number,
        etag=row.etag,
        update_time=row.update_time,
    )


def etag(position: int) -> str:
    """Return the etag of an alias that the change at `position` moved."""
    return f'"{position}"'


def change(row: Any) -> Change:
    """Read a row of `events`, with the columns of its version beside it."""
    if row.alias is None:
        return Change(row.position, version(row))
    name = AliasName(ModelName(row.tenant, row.model), row.alias)
    if row.number is None:
        return Change(row.position, name)
    moved = Alias(name=name, number=row.number, etag=etag(row.position), update_time=row.time)
    return Change(row.position, moved)

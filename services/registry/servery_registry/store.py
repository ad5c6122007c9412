"""Where the state about models is kept: the port, and what can go wrong behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_registry.version import Alias, File, Model, Version
from servery_rpc.errors import ServeryError
from servery_rpc.names import AliasName, ModelName, VersionName


class ModelNotFoundError(ServeryError):
    """No model has this name."""

    reason = reasons.ERROR_REASON_MODEL_NOT_FOUND

    def __init__(self, name: ModelName) -> None:
        super().__init__(f"{name} does not exist; register a version to create it", name=str(name))


class VersionNotFoundError(ServeryError):
    """No version has this name."""

    reason = reasons.ERROR_REASON_VERSION_NOT_FOUND

    def __init__(self, name: VersionName) -> None:
        super().__init__(f"{name} does not exist", name=str(name))


class AliasNotFoundError(ServeryError):
    """No alias has this name."""

    reason = reasons.ERROR_REASON_ALIAS_NOT_FOUND

    def __init__(self, name: AliasName) -> None:
        super().__init__(f"{name} does not exist", name=str(name))


class EtagMismatchError(ServeryError):
    """The alias changed since the caller read it."""

    reason = reasons.ERROR_REASON_ETAG_MISMATCH

    def __init__(self, name: AliasName, current: str) -> None:
        """Build it with the current etag, empty if there is no such alias now."""
        super().__init__(
            f"{name} was moved, created or deleted meanwhile; read it again, then decide again",
            name=str(name),
            etag=current,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A version before it has a number."""

    model: ModelName
    files: Sequence[File]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What makes a repeated call the same call, for 24 hours."""

    request_id: str
    """A UUID of the caller, unique in the tenant."""

    digest: str
    """SHA-256 of what was asked."""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the log."""

    position: int
    subject: Version | Alias | AliasName
    """A new version, where an alias points now, or the name of an alias that is gone."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All versions and aliases after the change at `position`."""

    position: int
    versions: Sequence[Version]
    aliases: Sequence[Alias]


class Store(Protocol):
    """Models, versions and aliases, with a log of every change. Calls block; any thread may call.

    Each writing call is one transaction: it is durable when it returns, or it did nothing.
    """

    def model(self, name: ModelName) -> Model:
        """Return one model.

        Raises:
            ModelNotFoundError: There is none.
        """

    def models(self, tenant: str, after: str, limit: int) -> Sequence[Model]:
        """Return the first models of a tenant whose id sorts behind `after`, by id."""

    def version(self, name: VersionName) -> Version:
        """Return one version.

        Raises:
            VersionNotFoundError: There is none.
        """

    def versions(self, model: ModelName, before: int | None, limit: int) -> Sequence[Version]:
        """Return the newest versions of a model whose number is below `before`, newest first.

        Raises:
            ModelNotFoundError: There is no such model.
        """

    def alias(self, name: AliasName) -> Alias:
        """Return one alias.

        Raises:
            AliasNotFoundError: There is none.
        """

    def answered(self, tenant: str, request: RequestKey) -> Version | None:
        """Return what `request` was answered in the last 24 hours, if it was.

        Raises:
            RequestIdReusedError: Its id came with another digest.
        """

    def add_version(self, new: NewVersion, request: RequestKey | None) -> Version:
        """Give `new` the next number of its model and make it visible.

        The files must be durable before. A `request` that was answered before is answered the
        same again, also when both calls run at once.

        Raises:
            RequestIdReusedError: The id of `request` came with another digest.
        """

    def set_alias(self, name: AliasName, number: int, etag: str) -> Alias:
        """Point an alias at version `number` if `etag` is its current one, empty to create it.

        An alias that points there already is returned as it is.

        Raises:
            VersionNotFoundError: There is no such version.
            EtagMismatchError: `etag` is not the current one.
        """

    def delete_alias(self, name: AliasName, etag: str) -> None:
        """Remove an alias if `etag` is its current one.

        Raises:
            AliasNotFoundError: There is none.
            EtagMismatchError: `etag` is not the current one.
        """

    def log_id(self) -> str:
        """Return the identity of the log: positions mean something in one log only."""

    def snapshot(self, tenant: str | None) -> Snapshot:
        """Return the present state of a tenant, or of all."""

    def changes(self, tenant: str | None, after: int, limit: int) -> Sequence[Change]:
        """Return the first changes behind position `after`, in order."""

    def position(self) -> int:
        """Return the position of the last change, 0 before the first."""

    def referenced_blobs(self) -> set[str]:
        """Return the SHA-256 of every file of every version."""

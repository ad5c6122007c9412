"""The version a job starts from: found, held against the job, and fetched before it begins.

What the process of the job does with the files is in `transfer`.
"""

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Protocol, Self

from google.protobuf import json_format
from google.protobuf.json_format import ParseError

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2
from servery_rpc.errors import DigestMismatchError, FieldInvalidError, ServeryError
from servery_rpc.names import AliasName, VersionName
from servery_trainer.examples import Examples
from servery_trainer.heads import datatype
from servery_trainer.imputation import Imputation
from servery_trainer.spec import ROOT, Spec, parse_spec
from servery_trainer.tasks import TabularTask

WEIGHTS: Final = "weights.npz"
PREPROCESSING: Final = "preprocessing.json"
LINEAGE: Final = "lineage.json"
SIGNATURE: Final = "signature.json"

_FILES: Final = (LINEAGE, SIGNATURE, PREPROCESSING, WEIGHTS)
_MAX_DOCUMENT_BYTES: Final = 16 * 1024**2
FIELD: Final = f"{ROOT}.base_version"
_FREE: Final = frozenset({"dropout", "module"})
"""Fields of a family that may differ: weights do not follow from them, or are looked at."""


class VersionNotFoundError(ServeryError):
    """No version has this name."""

    reason = reasons.ERROR_REASON_VERSION_NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}, to start from, does not exist", name=name)


class AliasNotFoundError(ServeryError):
    """No alias has this name."""

    reason = reasons.ERROR_REASON_ALIAS_NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}, to start from, does not exist", name=name)


class Versions(Protocol):
    """Published versions. Every call may raise DependencyUnavailableError: there is no answer."""

    async def pointed_at(self, alias: AliasName) -> VersionName:
        """Return what an alias points at.

        Raises:
            AliasNotFoundError: There is no such alias.
        """

    async def digests(self, version: VersionName) -> Mapping[str, str]:
        """Return the SHA-256 of each file of a version, by path.

        Raises:
            VersionNotFoundError: There is no such version.
        """

    def read(self, version: VersionName, path: str) -> AsyncIterator[bytes]:
        """Yield the bytes of one file, as the registry has them.

        Raises:
            VersionNotFoundError: It is gone.
        """


async def fetch(versions: Versions, version: VersionName, directory: Path) -> None:
    """Bring the files that a job starts from into `directory`, which is made anew.

    Raises:
        ServeryError: As `Versions`; or DigestMismatchError: other bytes came than were published.
        FieldInvalidError: The version keeps no weights.
    """
    declared = await _declared(versions, version)
    await asyncio.to_thread(_make_anew, directory)
    for path in _FILES:
        sha256 = hashlib.sha256()
        with await asyncio.to_thread((directory / path).open, "wb") as file:
            async for chunk in versions.read(version, path):
                sha256.update(chunk)
                await asyncio.to_thread(file.write, chunk)
        if sha256.hexdigest() != declared[path]:
            raise DigestMismatchError(path, declared[path], sha256.hexdigest())


def _make_anew(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


async def _declared(versions: Versions, version: VersionName) -> Mapping[str, str]:
    declared = await versions.digests(version)
    if any(path not in declared for path in _FILES):
        rule = "be a version that keeps its weights: one that this release of the trainer made"
        raise FieldInvalidError(FIELD, version, rule)
    return declared


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """What a version says of itself."""

    name: VersionName
    spec: Spec
    """What it was made by."""
    inputs: Mapping[str, tuple[str, list[int]]]
    """Datatype and shape of each input."""
    outputs: Mapping[str, tuple[list[int], list[str]]]
    """Shape and labels of each output."""
    weights_sha256: str

    @classmethod
    async def ask(cls, versions: Versions, version: VersionName) -> Self:
        """Ask the registry.

        Raises:
            ServeryError: As `fetch`.
        """
        declared = await _declared(versions, version)
        documents = []
        for path in (LINEAGE, SIGNATURE):
            content = b""
            async for chunk in versions.read(version, path):
                content += chunk
                if len(content) > _MAX_DOCUMENT_BYTES:
                    raise _no_base(version)
            if (computed := hashlib.sha256(content).hexdigest()) != declared[path]:
                raise DigestMismatchError(path, declared[path], computed)
            documents.append(content)
        return await asyncio.to_thread(cls.parse, version, *documents)

    @classmethod
    def parse(cls, version: VersionName, lineage: bytes, signature: bytes) -> Self:
        """Read the files of these names.

        Raises:
            FieldInvalidError: They are not what the trainer writes.
        """
        try:
            made, told = json.loads(lineage), json.loads(signature)
            spec = json_format.ParseDict(
                made["spec"], training_pb2.TrainingSpec(), ignore_unknown_fields=True
            )
            return cls(
                name=version,
                spec=parse_spec(spec),
                inputs={one["name"]: (one["datatype"], one["shape"]) for one in told["inputs"]},
                outputs={
                    one["name"]: (one["shape"], one.get("labels", [])) for one in told["outputs"]
                },
                weights_sha256=made["weights_sha256"],
            )
        except (ValueError, LookupError, TypeError, RecursionError, ServeryError, ParseError):
            raise _no_base(version) from None

    def check(self, spec: Spec, examples: Examples) -> None:
        """Refuse a job that cannot go on where this version ended.

        Raises:
            FieldInvalidError: It is of another kind; names the field to change.
        """
        if spec.task.name != self.spec.task.name:
            rule = f"be a version of a model for {spec.task.name}, not for {self.spec.task.name}"
            raise FieldInvalidError(FIELD, self.name, rule)
        if spec.framework != self.spec.framework:
            chosen, rightly = map(
                training_pb2.Framework.Name, (spec.framework, self.spec.framework)
            )
            rule = f"be {rightly}, that of the base version"
            raise FieldInvalidError(f"{ROOT}.framework", chosen, rule)
        _require_equal_family(spec, self.spec)
        ours, theirs = spec.training.ensemble_size, self.spec.training.ensemble_size
        if ours != theirs:
            rule = f"be {theirs}, the number of networks of the base version"
            raise FieldInvalidError(f"{ROOT}.training.ensemble_size", ours, rule)
        if spec.members != self.spec.members:
            rule = "be those of the base version"
            raise FieldInvalidError(f"{ROOT}.training.members", len(spec.members), rule)
        _require_no_new_preprocessing(spec, self.spec)
        given = {
            name: (datatype(values.dtype), [-1, *values.shape[1:]])
            for name, values in examples.inputs.items()
        }
        for name in sorted({*self.inputs, *given}):
            if given.get(name) != self.inputs.get(name):
                rule = (
                    f"hold the inputs of the base version: {name!r} is {_named(given.get(name))}"
                    f" instead of {_named(self.inputs.get(name))}"
                )
                raise FieldInvalidError(f"{ROOT}.dataset", spec.dataset, rule)


def _no_base(version: VersionName) -> FieldInvalidError:
    return FieldInvalidError(FIELD, version, "be a version that the trainer made")


def _named(kind: tuple[str, list[int]] | None) -> str:
    return "not there" if kind is None else f"{kind[0]} {kind[1]}"


def _require_equal_family(spec: Spec, base: Spec) -> None:
    family = f"{ROOT}.{spec.family.name}"
    if type(spec.family) is not type(base.family):
        rule = f"be {base.family.name}, the family of the base version"
        raise FieldInvalidError(family, spec.family.name, rule)
    for field in fields(spec.family):
        ours, theirs = getattr(spec.family, field.name), getattr(base.family, field.name)
        if field.name not in _FREE and ours != theirs:
            shown = list(theirs) if isinstance(theirs, tuple) else theirs
            rule = f"be {shown}, as in the base version"
            raise FieldInvalidError(f"{family}.{field.name}", ours, rule)


def _require_no_new_preprocessing(spec: Spec, base: Spec) -> None:
    """Refuse to be asked for other numbers than the preprocessing of the base version has."""
    task, kept = spec.task, base.task
    if not (isinstance(task, TabularTask) and isinstance(kept, TabularTask)):
        return
    path = f"{ROOT}.{task.name}"
    if task.clip and task.clip != kept.clip:
        rule = "be empty, or as in the base version: its preprocessing stays as it is"
        raise FieldInvalidError(f"{path}.clip", ", ".join(task.clip), rule)
    imputes = Imputation.of(task.missing, task.fill) is not None
    if imputes and (task.missing, task.fill) != (kept.missing, kept.fill):
        name = training_pb2.MissingPolicy.Name(task.missing)
        rule = "be as in the base version, REFUSE or DROP_ROWS: its preprocessing stays as it is"
        raise FieldInvalidError(f"{path}.missing", name, rule)

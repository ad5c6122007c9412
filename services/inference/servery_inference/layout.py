"""Triton's layout of a directory: `<model>/config.pbtxt`, `<model>/<version>/<graph>`.

The directory is the operator's, but nothing in it may lead out of it. Everything blocks.
"""

import contextlib
import logging
import re
import stat
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference import model_config
from servery_inference.bundle import Bundle
from servery_inference.engine import LoadFailedError
from servery_inference.model_config import GivenConfig, read_config

_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What there is of one model."""

    folder: Path

    versions: Mapping[int, Hashable]
    """The numbers there are, each with something that changes when its files do."""

    config: GivenConfig

    problem: str = ""
    """Why none of its versions can be served."""

    def revisions(self) -> dict[int, Hashable]:
        """Return the versions to serve, by the policy of the config."""
        written = self.config.message.SerializeToString(deterministic=True)
        return {
            number: (str(self.folder), self.versions[number], written, self.problem)
            for number in chosen(self.config.message.version_policy, sorted(self.versions))
        }

    def steps(self) -> set[str]:
        """Return the names of the models that an ensemble is made of."""
        return {step.model_name for step in self.config.message.ensemble_scheduling.step}


def chosen(policy: pb.ModelVersionPolicy, numbers: Sequence[int]) -> list[int]:
    """Return which of `numbers`, rising, a policy wants served."""
    match policy.WhichOneof("policy_choice"):
        case "all":
            return list(numbers)
        case "specific":
            wanted = set(policy.specific.versions)
            return [number for number in numbers if number in wanted]
        case "latest":
            return list(numbers)[-max(1, policy.latest.num_versions) :]
        case _:
            return list(numbers)[-1:]


def names(root: Path) -> list[str]:
    """Return the names of the models under `root`, in order.

    Raises:
        OSError: `root` cannot be read.
    """
    found = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        if _NAME.fullmatch(entry.name):
            found.append(entry.name)
        else:
            log.warning("folder %r is no model: names match %s", entry.name, _NAME.pattern)
    return found


def find(root: Path, model: str) -> FoundModel | None:
    """Look at one model; None if there is none of that name."""
    folder = root / model
    if not _NAME.fullmatch(model) or not folder.is_dir():
        return None
    if not folder.resolve().is_relative_to(root.resolve()):
        problem = "its folder is a link that leads out of the model repository"
        return FoundModel(folder, {1: None}, GivenConfig.none(), problem)
    config, problem = GivenConfig.none(), ""
    try:
        _require_inside(folder / model_config.FILE, root)
        config = read_config(folder)
    except LoadFailedError as error:
        problem = str(error)
    versions: dict[int, Hashable] = {
        int(entry.name): stamp(entry)
        for entry in folder.iterdir()
        if _is_version(entry.name) and entry.is_dir()
    }
    return FoundModel(folder, versions, config, problem)


def stamp(folder: Path) -> Hashable:
    """Tell the files of a folder from what they were, by their names, sizes and times. Blocks."""
    stamps = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):  # It is being replaced: the next look sees another one.
            status = path.stat()
            stamps.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name[0] != "0" and len(name) <= 18


def graph_of(root: Path, found: FoundModel, number: int) -> Bundle:
    """Return the files of a version, none of which lies outside of it.

    Raises:
        LoadFailedError: There is no graph, or something leads out.
    """
    if found.problem:
        raise LoadFailedError(found.problem)
    folder = found.folder / str(number)
    bundle = Bundle(folder, golden_required=False, is_admitted=False, config=found.config)
    if bundle.config.is_ensemble:
        return bundle
    if not _NAME.fullmatch(bundle.graph.name) or bundle.graph.parent != folder:
        raise LoadFailedError(
            "default_model_filename must be the name of a file in the folder of the version"
        )
    if not bundle.graph.is_file():
        raise LoadFailedError(f"the folder of the version has no {bundle.graph.name}")
    _require_inside(folder, root)
    for path in folder.rglob("*"):
        _require_inside(path, root, folder)
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise LoadFailedError(f"'{path.name}' in the folder of the version is no file")
    return bundle


def _require_inside(path: Path, root: Path, folder: Path | None = None) -> None:
    """Refuse links that lead out of the repository, or files of a version that do out of it.

    A version folder may itself be reached through a link inside the repository.
    """
    border = (folder or root).resolve()
    if not path.resolve().is_relative_to(border):
        where = "the folder of the version" if folder else "the model repository"
        raise LoadFailedError(f"'{path.name}' is a link that leads out of {where}")


def lay_out(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, of which each is `is_safe_path`, to a folder that is not there yet."""
    folder.mkdir()
    for path, data in files.items():
        version, _, name = path.partition("/")
        target = folder / version
        if name:
            target.mkdir(exist_ok=True)
            target /= name
        target.write_bytes(data)


def is_safe_path(path: str) -> bool:
    """Tell whether `path` is `<version>/<file>` or `<file>`, as a load request may bring it."""
    version, slash, name = path.partition("/")
    if not slash:
        return _NAME.fullmatch(path) is not None and not _is_version(path)
    return _is_version(version) and _NAME.fullmatch(name) is not None


def is_name(text: str) -> bool:
    """Tell whether a model, or a file of one, may be called so."""
    return _NAME.fullmatch(text) is not None

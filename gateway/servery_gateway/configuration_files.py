"""Keeps the configuration in force as files, which an Envoy can serve by without a control plane.

One file for all clusters and one for all listeners, of which Envoy takes whatever there is, and one
for each resource that it asks for by name. Envoy follows a file by its replacement, so one that was
started from these files gets changes from the control plane once that is back; only, it cannot say
what it made of them.
"""

import contextlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Final

from servery_gateway.secret_files import make_private_directory
from servery_gateway.snapshot import (
    CLUSTER,
    ENDPOINTS,
    EXTENSION,
    LISTENER,
    ROUTES,
    SECRET,
    WILDCARD,
    Resource,
    Snapshot,
)

_ORDER: Final = (ENDPOINTS, CLUSTER, SECRET, EXTENSION, ROUTES, LISTENER)
"""In which files are replaced: what is referred to is there before what refers to it."""

_WHOLE: Final = "all"


def configuration_file(directory: Path, kind: str, name: str = _WHOLE) -> Path:
    """Return the file of a resource; without its name, of all resources of its type."""
    return directory / f"{kind.rpartition('.')[2]}.{name}.json"


def source(directory: Path, kind: str, name: str = _WHOLE) -> Resource:
    """Return how Envoy's configuration refers to that file."""
    path = str(configuration_file(directory, kind, name))
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


class ConfigurationFiles:
    """The files of one directory, for this user alone. Safe to use from many threads; blocks.

    Raises:
        OSError: The directory cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        make_private_directory(directory)
        self._directory = directory
        self._kept: dict[str, str] = {}
        self._lock = Lock()
        self._closed = False

    def keep(self, snapshot: Snapshot) -> None:
        """Replace what differs from `snapshot`; nothing once this is closed.

        Raises:
            OSError: A file cannot be written. What was written stays.
        """
        with self._lock:
            if not self._closed:
                self._keep(snapshot)

    def close(self) -> None:
        """Return when nothing is written any more, even by a thread that nobody waits for."""
        with self._lock:
            self._closed = True

    def _keep(self, snapshot: Snapshot) -> None:
        wanted: set[Path] = set()
        for kind in _ORDER:
            files = self._files(kind, snapshot.resources.get(kind, {}))
            wanted |= files.keys()
            if self._kept.get(kind) == snapshot.versions[kind]:
                continue
            for path, resources in files.items():
                content = [self._from_files(kind, resource) for resource in resources]
                self._replace(path, {"resources": content})
            self._kept[kind] = snapshot.versions[kind]
        for path in self._directory.glob("*.json"):
            if path not in wanted:
                path.unlink()

    def _files(
        self, kind: str, named: Mapping[str, Resource]
    ) -> Mapping[Path, Collection[Resource]]:
        if kind in WILDCARD:
            return {configuration_file(self._directory, kind): named.values()}
        return {
            configuration_file(self._directory, kind, name): [resource]
            for name, resource in named.items()
        }

    def _from_files(self, kind: str, resource: Resource) -> Resource:
        return {"@type": kind, **self._redirected(resource)}

    def _redirected(self, value: Any) -> Any:
        """The same with every reference to the control plane replaced by one to a file."""
        if isinstance(value, (list, tuple)):
            return [self._redirected(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        changed = {key: self._redirected(item) for key, item in value.items()}
        match value:
            case {"eds_cluster_config": _, "name": name}:
                changed["eds_cluster_config"] = {"eds_config": self._source(ENDPOINTS, name)}
            case {"route_config_name": name, "config_source": _}:
                changed["config_source"] = self._source(ROUTES, name)
            case {"config_discovery": _, "name": name}:
                changed["config_discovery"]["config_source"] = self._source(EXTENSION, name)
            case {"sds_config": _, "name": name}:
                changed["sds_config"] = self._source(SECRET, name)
        return changed

    def _source(self, kind: str, name: str) -> Resource:
        return source(self._directory, kind, name)

    def _replace(self, path: Path, document: Mapping[str, Any]) -> None:
        draft = path.with_suffix(".draft")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()  # Of a process that died.
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(document, file)
        draft.replace(path)

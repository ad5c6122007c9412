"""What this user's processes found out about graphs, by the digest of their files, on disk.

Two things are worth keeping: that a graph was admitted by the throw-away process, and what ONNX
Runtime made of it by optimising it. An entry is used only if it is whole, and only by a process
that would come to the same result: the key holds everything that the result depends on. Safe for
several processes at once. All of it blocks.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

MAX_BYTES: Final = 1 << 30
MAX_ENTRIES: Final = 10_000
MIN_LOAD_S: Final = 0.05

_FACTS: Final = "facts.json"
_GRAPH: Final = "graph.onnx"
_DIGEST: Final = "sha256"
"""The fact that says what the graph must be; empty if there is none."""

_DRAFT: Final = "new-"
_STALE_S: Final = 3600.0
_MAX_FACTS_BYTES: Final = 1 << 16
_MAX_DIGESTS: Final = 1000


class GraphCacheUnsafeError(RuntimeError):
    """Others could have put something into the directory of the cache."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known under one key."""

    facts: Mapping[str, Any]

    graph: bytes | None
    """A serialized graph, whole; None if there is none."""


class GraphCache:
    """A directory of one user.

    Args:
        root: It is made if it is not there.
        max_bytes: What all entries may take; those used longest ago go first.
        min_load_s: Graphs that load sooner are not worth keeping optimised: looking costs as much.

    Raises:
        OSError: It cannot be made.
        GraphCacheUnsafeError: It belongs to another user, or others may write to it.
    """

    def __init__(
        self, root: Path, max_bytes: int = MAX_BYTES, min_load_s: float = MIN_LOAD_S
    ) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise GraphCacheUnsafeError(
                f"the directory {root.name!r} of the cache must belong to the user of this process,"
                " who alone may write to it"
            )
        self.min_load_s = min_load_s
        self._root = root
        self._max_bytes = max_bytes
        self._digests: dict[Path, tuple[object, str]] = {}

    def key(self, graph: Path, *depends_on: object) -> str:
        """Return the key for what is found out about a graph.

        Args:
            graph: The file; whatever lies beside it may be part of the graph.
            depends_on: What else the result depends on; equal things are printed equally.

        Raises:
            OSError: A file cannot be read.
        """
        parts = [self._digest(graph), ort.__version__, *map(repr, depends_on)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def read(self, key: str) -> Entry | None:
        """Return what is known under a key; None if nothing is, or it is damaged."""
        folder = self._root / key
        try:
            with (folder / _FACTS).open("rb") as file:
                facts = json.loads(file.read(_MAX_FACTS_BYTES))
            graph = (folder / _GRAPH).read_bytes() if facts[_DIGEST] else None
            # What is checked is what is used: it stays in memory in between.
            if graph is not None and hashlib.sha256(graph).hexdigest() != facts[_DIGEST]:
                raise ValueError
            os.utime(folder)
        except (OSError, ValueError, TypeError, KeyError):
            self.drop(key)  # Nothing, mostly.
            return None
        return Entry(facts, graph)

    @contextlib.contextmanager
    def draft(self, key: str) -> Iterator["Draft"]:
        """Prepare an entry for the length of the block; it is kept if `Draft.keep` is called.

        Raises:
            OSError: The directory cannot be written.
        """
        folder = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=self._root))
        try:
            yield Draft(folder, self._root / key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._make_room()

    def drop(self, key: str) -> None:
        """Forget what is known under a key."""
        shutil.rmtree(self._root / key, ignore_errors=True)

    def _digest(self, graph: Path) -> str:
        """The digest of a graph and the files beside it, remembered as long as none changes."""
        paths = sorted(path for path in graph.parent.rglob("*") if path.is_file())
        names = [str(path.relative_to(graph.parent)) for path in (graph, *paths)]
        stamps = [(s.st_ino, s.st_size, s.st_mtime_ns) for s in (path.stat() for path in paths)]
        stamp = names, stamps
        known = self._digests.get(graph)
        if known is not None and known[0] == stamp:
            return known[1]
        whole = hashlib.sha256()
        for name, path in zip(names, (graph, *paths), strict=True):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{digest}  {name}\n".encode())
        if len(self._digests) >= _MAX_DIGESTS:
            self._digests.clear()
        self._digests[graph] = stamp, whole.hexdigest()
        return whole.hexdigest()

    def _make_room(self) -> None:
        entries = sorted(map(_use, self._root.iterdir()), reverse=True)
        total = 0
        for number, (used_s, num_bytes, folder) in enumerate(entries):
            total += num_bytes
            is_stale = folder.name.startswith(_DRAFT) and used_s < time.time() - _STALE_S
            if is_stale or total > self._max_bytes or number >= MAX_ENTRIES:
                shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry on its way."""

    folder: Path
    target: Path

    @property
    def graph(self) -> Path:
        """Where to put its graph, if it has one."""
        return self.folder / _GRAPH

    def keep(self, facts: Mapping[str, Any]) -> None:
        """Complete the entry with JSON values; what another process kept meanwhile stays.

        Raises:
            OSError: It cannot be written.
        """
        digest = ""
        if self.graph.exists():
            with self.graph.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        (self.folder / _FACTS).write_text(json.dumps({**facts, _DIGEST: digest}))
        with contextlib.suppress(OSError):
            self.folder.rename(self.target)


def processor() -> str:
    """Return what tells this machine's processors from others that run graphs differently."""
    try:
        lines = set(Path("/proc/cpuinfo").read_text().splitlines())
    except OSError:
        lines = set()
    told = sorted(line for line in lines if line.startswith(("model name", "flags", "Features")))
    return "\n".join((platform.machine(), *told))


def _use(folder: Path) -> tuple[float, int, Path]:
    """When an entry was used last, how many bytes it takes, and where it is."""
    try:
        size = sum(path.stat().st_size for path in folder.iterdir())
        return folder.stat().st_mtime, size, folder
    except OSError:  # Another process drops it.
        return 0.0, 0, folder

"""Run the registry: `servery-registry --data-dir DIR`."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from servery_registry.sandbox import AdmissionLimits
from servery_registry.service import open_registry
from servery_rpc.database import DatabaseSettings
from servery_rpc.process import run_process, stop_requested
from servery_rpc.server import serving
from servery_rpc.settings import option

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings(DatabaseSettings):
    """Keep models, their versions, files and aliases, and tell watchers of every change."""

    data_dir: Path = option("directory for the files and the database, created if missing")
    max_bundle_bytes: int = option("largest sum of the file sizes of a version", 4 * 1024**3)
    admission_memory_bytes: int = option(
        "address space of the throw-away process that loads a new version", 4 * 1024**3
    )
    admission_s: float = option("seconds that this process may take", 60.0)
    max_message_bytes: int = option("largest message accepted or sent; -1: no limit", 16 * 1024**2)

    def __post_init__(self) -> None:
        """Refuse what cannot work; see `DatabaseSettings`."""
        super(RegistrySettings, self).__post_init__()  # slots=True makes a new class: no super().
        if self.max_bundle_bytes < 1:
            raise ValueError(f"max_bundle_bytes must be at least 1, not {self.max_bundle_bytes}")
        if self.admission_memory_bytes < 512 * 1024**2:
            raise ValueError(
                "admission_memory_bytes must be at least 536870912, which ONNX Runtime itself"
                f" takes, not {self.admission_memory_bytes}"
            )
        if self.admission_s <= 0:
            raise ValueError(f"admission_s must be more than 0, not {self.admission_s}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; return its exit status."""
    return run_process(RegistrySettings, "SERVERY_REGISTRY", run, argv)


async def run(settings: RegistrySettings) -> None:
    """Serve the registry in `settings.data_dir` until asked to stop."""
    limits = AdmissionLimits(
        memory_bytes=settings.admission_memory_bytes, wall_s=settings.admission_s
    )
    opened = open_registry(
        settings.data_dir,
        settings.max_bundle_bytes,
        limits,
        partial(datetime.now, UTC),
        settings.database_url,
    )
    async with opened as registry, serving(settings, registry.service) as server:
        log.info("registry listening on %s", server.address)
        await stop_requested()
        registry.watch.close()


if __name__ == "__main__":
    sys.exit(main())

"""What the trainer can be told."""

import re
from dataclasses import dataclass
from pathlib import Path

from servery_rpc.database import DatabaseSettings
from servery_rpc.names import TENANT
from servery_rpc.settings import option
from servery_trainer.intake import UploadLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings(DatabaseSettings):
    """Take datasets and training jobs; run each job in its own process; publish what comes out."""

    data_dir: Path = option("directory for datasets, jobs and the database; made if missing")
    registry: str = option("host:port or unix:/path of the registry to publish to")
    parallel_jobs: int = option("training processes that run at the same time", 1)
    cores: int = option("CPU cores all of them may use together; 0: all there are", 0)
    memory_bytes: int = option("memory all of them may use together; 0: all there is", 0)
    job_memory_bytes: int = option("address space one training process may use; 0: no limit", 0)
    max_message_bytes: int = option("largest message accepted or sent; -1: no limit", 64 * 1024**2)
    max_dataset_bytes: int = option("largest dataset accepted", 2 * 1024**3)
    max_uploads: int = option("uploads of a tenant under way at the same time", 16)
    upload_stall_s: float = option("seconds an upload may say nothing before it is ended", 60.0)
    upload_keep_s: float = option("seconds an upload that broke off is kept", 86_400.0)
    spare_disk_bytes: int = option("disk space that uploads leave free", 256 * 1024**2)
    custom_code_tenants: tuple[str, ...] = option(
        "ids of tenants whose own modules may build networks, in a process that is shut in", ()
    )

    def __post_init__(self) -> None:
        """See `DatabaseSettings`."""
        # dataclass(slots=True) replaces the class, so the argument-free form of super() fails.
        super(TrainerSettings, self).__post_init__()
        if not self.registry:
            raise ValueError("registry must be host:port or unix:/path, not empty")
        if self.parallel_jobs < 1:
            raise ValueError(f"parallel_jobs must be at least 1, not {self.parallel_jobs}")
        for name in ("cores", "memory_bytes", "job_memory_bytes", "spare_disk_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.max_dataset_bytes < 1:
            raise ValueError(f"max_dataset_bytes must be at least 1, not {self.max_dataset_bytes}")
        for tenant in self.custom_code_tenants:
            if not re.fullmatch(TENANT, tenant):
                raise ValueError(f"custom_code_tenants must be ids of tenants, not {tenant!r}")
        for name in ("max_uploads", "upload_stall_s", "upload_keep_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be over 0, not {getattr(self, name)}")

    def upload_limits(self) -> UploadLimits:
        """Return what uploads may take."""
        return UploadLimits(
            max_bytes=self.max_dataset_bytes,
            per_tenant=self.max_uploads,
            stall_s=self.upload_stall_s,
            keep_s=self.upload_keep_s,
            spare_bytes=self.spare_disk_bytes,
        )

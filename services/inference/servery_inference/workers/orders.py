"""What the parent tells every worker to load, and what a worker tells of what it loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference.bundle import Bundle
from servery_inference.model_config import GivenConfig
from servery_inference.workers.channel import Parcel


@dataclass(frozen=True, slots=True)
class Order:
    """One version to load."""

    number: int
    """Tells it from any other load."""

    model: str
    version: int
    bundle: Bundle

    def to_parcel(self) -> Parcel:
        """Render it for another process of this machine."""
        bundle = self.bundle
        fields = {
            "number": self.number,
            "model": self.model,
            "version": self.version,
            "folder": str(bundle.folder.absolute()),
            "golden_required": bundle.golden_required,
            "is_admitted": bundle.is_admitted,
            "names_max_batch_size": bundle.config.names_max_batch_size,
        }
        return Parcel(fields, bundle.config.message.SerializeToString())

    @classmethod
    def from_parcel(cls, parcel: Parcel) -> Self:
        """Read what `to_parcel` gave."""
        fields = parcel.fields
        config = GivenConfig(ModelConfig.FromString(parcel.body), fields["names_max_batch_size"])
        bundle = Bundle(
            Path(fields["folder"]),
            golden_required=fields["golden_required"],
            is_admitted=fields["is_admitted"],
            config=config,
        )
        return cls(fields["number"], fields["model"], fields["version"], bundle)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that a worker can serve."""

    config: ModelConfig
    """Complete."""

    load_s: float

    def to_parcel(self) -> Parcel:
        """Render it for another process of this machine."""
        return Parcel({"load_s": self.load_s}, self.config.SerializeToString())

    @classmethod
    def from_parcel(cls, parcel: Parcel) -> Self:
        """Read what `to_parcel` gave."""
        return cls(ModelConfig.FromString(parcel.body), parcel.fields["load_s"])

"""What the registry says exists: versions, and the aliases that point at them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from google.protobuf import json_format

from servery.registry.v1 import registry_pb2 as pb
from servery_inference.cache import BundleSpec
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import AliasName, ModelName, VersionName


@dataclass(slots=True)
class World:
    """The part of the registry's state that decides what to serve."""

    versions: dict[VersionName, BundleSpec] = field(default_factory=dict)
    aliases: dict[AliasName, VersionName] = field(default_factory=dict)

    def apply(self, response: pb.WatchModelsResponse) -> ModelName | None:
        """Take in one event; return the model it is about, if it is about one.

        Raises:
            FieldInvalidError: The registry sent something malformed.
        """
        match response.WhichOneof("event"):
            case "version":
                spec = BundleSpec.parse(response.version)
                self.versions[spec.name] = spec
                return spec.name.model
            case "alias":
                alias = AliasName.parse(response.alias.name)
                self.aliases[alias] = VersionName.parse(response.alias.version)
                return alias.model
            case "deleted_alias":
                alias = AliasName.parse(response.deleted_alias)
                self.aliases.pop(alias, None)
                return alias.model
            case _:
                return None

    def models(self) -> set[ModelName]:
        """Return every model that has a version or an alias."""
        return {name.model for name in self.versions} | {alias.model for alias in self.aliases}

    def targets(self, model: ModelName) -> dict[str, int]:
        """Return the version that each alias of `model` points at."""
        return {
            alias.alias: version.number
            for alias, version in self.aliases.items()
            if alias.model == model
        }


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a process needs to serve again while the registry is away."""

    world: World
    """The versions in use, and all aliases."""

    serving: Mapping[ModelName, Mapping[str, int]]
    """The version that each alias meant."""

    @classmethod
    def of(cls, world: World, serving: Mapping[ModelName, Mapping[str, int]]) -> Self:
        """Keep of `world` what is in use."""
        used = set(world.aliases.values())
        for model, aliases in serving.items():
            used |= {VersionName(model, number) for number in aliases.values()}
        versions = {name: world.versions[name] for name in sorted(used) if name in world.versions}
        return cls(World(versions, dict(world.aliases)), serving)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; empty if it is damaged, for the registry knows it all."""
        try:
            specs = [
                BundleSpec.parse(json_format.ParseDict(version, pb.Version()))
                for version in state["versions"]
            ]
            aliases = {
                AliasName.parse(alias): VersionName.parse(version)
                for alias, version in state["aliases"].items()
            }
            serving = {
                ModelName.parse(model): {str(a): int(n) for a, n in numbers.items()}
                for model, numbers in state["serving"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, FieldInvalidError):
            return cls(World(), {})
        return cls(World({spec.name: spec for spec in specs}, aliases), serving)

    def to_json(self) -> dict[str, Any]:
        """Render as JSON values."""
        return {
            "versions": [
                json_format.MessageToDict(spec.to_proto()) for spec in self.world.versions.values()
            ],
            "aliases": {str(alias): str(version) for alias, version in self.world.aliases.items()},
            "serving": {str(model): dict(numbers) for model, numbers in self.serving.items()},
        }

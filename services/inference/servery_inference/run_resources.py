"""What the runs of a model take while they last, and how much of it the operator says there is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeAlias

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.engine import LoadFailedError

GLOBAL: Final = -1
_CPU: Final = 0

Resource: TypeAlias = tuple[int, str]
"""Device, or -1 for one that all devices share, and name."""


@dataclass(frozen=True, slots=True)
class Provision:
    """How much the operator says there is of a resource."""

    name: str
    count: int

    device: int | None
    """None for every device."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name:count` or `name:count:device`.

        Raises:
            ValueError: `text` is neither.
        """
        name, *numbers = text.split(":")
        if not name or len(numbers) not in (1, 2) or not all(n.isdecimal() for n in numbers):
            raise ValueError(f"rate_limit_resource must be name:count[:device], not {text!r}")
        return cls(name, int(numbers[0]), int(numbers[1]) if numbers[1:] else None)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run of one instance takes."""

    resources: Mapping[Resource, int]

    priority: int = 1
    """An instance of priority 2 gets half the turns of one of priority 1."""


def demands(config: pb.ModelConfig) -> list[Demand]:
    """Return what the runs of every instance of a complete config take.

    Raises:
        LoadFailedError: It counts a resource by device, but runs go to several in turns.
    """
    devices = {gpu for group in config.instance_group for gpu in group.gpus}
    found: list[Demand] = []
    for group in config.instance_group:
        limiter = group.rate_limiter
        local = [resource.name for resource in limiter.resources if not getattr(resource, "global")]
        if local and len(devices) > 1:
            raise LoadFailedError(
                f"rate_limiter counts '{local[0][:100]}' on each device, but this model runs on"
                " several, in turns; make the resource global, or use one device"
            )
        device = next(iter(group.gpus), _CPU)
        resources = {
            (GLOBAL if getattr(r, "global") else device, r.name): r.count for r in limiter.resources
        }
        demand = Demand(resources, max(limiter.priority, 1))
        found += [demand] * (group.count * max(1, len(group.gpus)))
    return found

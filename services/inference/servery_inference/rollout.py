"""Which versions of a model to load and unload next: a pure decision, without the doing."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """Where a version stands. The value is what the repository index calls it."""

    LOADING = ("LOADING",)
    READY = ("READY",)
    UNLOADING = ("UNLOADING",)
    UNLOADED = ("UNAVAILABLE", "unloaded")
    FAILED = ("UNAVAILABLE", "failed")

    @property
    def wire(self) -> str:
        """The name on the wire."""
        return str(self.value[0])


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now, and which version each alias means meanwhile."""

    load: tuple[int, ...]
    unload: tuple[int, ...]
    serving: Mapping[str, int]


def next_step(
    targets: Mapping[str, int], serving: Mapping[str, int], states: Mapping[int, State]
) -> Step:
    """Move every alias towards its target without a moment in which it has no version.

    An alias moves when its target is READY. Until then, also if that never happens, it keeps the
    version that it has. A FAILED version is not tried again: whoever makes a new attempt takes it
    out of `states`.

    Args:
        targets: Version that each alias shall mean.
        serving: Version that each alias means now.
        states: All versions known, by number.
    """
    moved: dict[str, int] = {}
    for alias, target in targets.items():
        current = serving.get(alias)
        if states.get(target) is State.READY:
            moved[alias] = target
        elif current is not None and states.get(current) is not State.FAILED:
            moved[alias] = current
    kept = {*targets.values(), *moved.values()}
    return Step(
        load=tuple(sorted(n for n in kept if states.get(n, State.UNLOADED) is State.UNLOADED)),
        unload=tuple(
            sorted(
                number
                for number, state in states.items()
                if number not in kept and state in (State.LOADING, State.READY, State.FAILED)
            )
        ),
        serving=moved,
    )

"""What a version of a model does with one request whose tensors fit it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from servery_inference.request import Array, Terms, Timing


@dataclass(slots=True)
class Result:
    """What a model gave for one request."""

    values: Sequence[Array]
    """The wanted outputs, in their order; views of a batch. Nobody changes them."""

    timing: Timing

    is_cached: bool = False
    """Whether nothing was run for it."""


class Runner(Protocol):
    """Runs requests, in whichever order and company it sees fit."""

    async def run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        terms: Terms,
        deadline: float | None,
    ) -> Result:
        """Run one request.

        Args:
            feed: An array for every input.
            names: Outputs to compute, in the order of the model.
            rows: Length of the first axis where there is a batch, else 1.
            size: See `costs`.
            terms: What the request says about its turn.
            deadline: When its caller stops waiting, by `time.monotonic`; None for never.

        Raises:
            ServeryError: It is refused or fails.
        """

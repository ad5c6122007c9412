"""The files of a version on this machine."""

from dataclasses import dataclass, field
from pathlib import Path

from servery_inference import explanation
from servery_inference.model_config import GRAPH, GivenConfig


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of a version on this machine, verified by whoever brought them."""

    folder: Path

    golden_required: bool
    """Whether a version without golden rows is refused."""

    is_admitted: bool = True
    """Whether somebody opened the graph before and vouches for it."""

    config: GivenConfig = field(default_factory=GivenConfig.none)
    """What was written about the model."""

    @property
    def graph(self) -> Path:
        """The file with the graph."""
        return self.folder / (self.config.message.default_model_filename or GRAPH)

    @property
    def explanation(self) -> Path | None:
        """The file with the graph that explains the answers of the other one, if there is one."""
        path = self.folder / explanation.FILE
        return path if path != self.graph and path.is_file() else None

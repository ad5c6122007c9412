"""What a version keeps so that another job can go on where it ended, and how that job does.

Beside its graph a version has the weights of every network, and its preprocessing as data. A job
that starts from it sees the very features that it saw, and learns numbers on its scale.
"""

import io
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import VersionName
from servery_trainer.base_version import (
    FIELD,
    LINEAGE,
    PREPROCESSING,
    SIGNATURE,
    WEIGHTS,
    BaseVersion,
)
from servery_trainer.checkpoints import digest
from servery_trainer.examples import Examples
from servery_trainer.frameworks import Framework, Network
from servery_trainer.heads import Output
from servery_trainer.objectives import ForecastError, Objective, SquaredError
from servery_trainer.preprocessing import FloatArray, Preprocessing
from servery_trainer.preprocessing_file import NotPreprocessingError, dump, load
from servery_trainer.spec import Spec

log = logging.getLogger(__name__)

_SCALE: Final = "scale"
_LINEAR: Final = "linear"


def files(
    networks: Sequence[Network], preprocessing: Preprocessing, objective: Objective
) -> dict[str, bytes]:
    """Return the files of a version that `open_base` reads, by name."""
    arrays = {
        f"{number}/{index}": array
        for number, network in enumerate(networks)
        for index, array in enumerate(network.get_weights())
    }
    error = objective.error if isinstance(objective, ForecastError) else objective
    if isinstance(error, SquaredError):
        arrays[_SCALE] = np.array([error.mean, error.deviation])
    if isinstance(objective, ForecastError):
        arrays[_LINEAR] = objective.linear
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return {WEIGHTS: content.getvalue(), PREPROCESSING: dump(preprocessing)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The version that a job starts from, opened."""

    version: BaseVersion
    preprocessing: Preprocessing
    weights: Sequence[Sequence[NDArray[Any]]]
    """Of each network, in the order of `Network.get_weights`."""
    scale: SquaredError | None
    """Of the numbers it learned, if it did."""
    linear: FloatArray | None
    """The linear part of its forecasts, if it makes any."""
    same_outputs: bool
    """Whether the job has the labels of the version, or as many numbers to tell."""

    def rescaled(self, objective: Objective) -> Objective:
        """Return an objective with numbers on the scale that the weights are for."""
        if self.scale is None:
            return objective
        if not isinstance(objective, ForecastError):
            return self.scale
        kept = self.linear if self.same_outputs else None
        return ForecastError(self.scale, objective.linear if kept is None else kept)

    def start(self, framework: Framework, network: Network, number: int) -> None:
        """Give a network the weights of this version.

        Args:
            framework: Its framework.
            network: As built; of other outputs than the version has, its last layer stays so.
            number: Which one of an ensemble it is.

        Raises:
            FieldInvalidError: They do not fit.
        """
        anew = () if self.same_outputs else framework.last_layer(network)
        ours, theirs = network.get_weights(), self.weights[number]
        if len(ours) != len(theirs) or any(
            ours[place].shape != theirs[place].shape
            for place in range(len(ours))
            if place not in anew
        ):
            raise FieldInvalidError(FIELD, self.version.name, "have networks with the same layers")
        network.set_weights(
            [ours[place] if place in anew else theirs[place] for place in range(len(ours))]
        )

    def lineage(self) -> dict[str, Any]:
        """Say of a version that it started from this one."""
        return {
            "base_version": {
                "name": str(self.version.name),
                "weights_sha256": self.version.weights_sha256,
                "new_last_layer": not self.same_outputs,
            }
        }


def open_base(spec: Spec, directory: Path, examples: Examples, outputs: Sequence[Output]) -> Base:
    """Read the files that `base_version.fetch` brought.

    Args:
        spec: Of the job.
        directory: Where they are.
        examples: What the job learns from.
        outputs: Those of the graph it will make.

    Raises:
        FieldInvalidError: They are not what the trainer writes, or the job cannot go on from them.
    """
    name = VersionName.parse(str(spec.base_version), FIELD)
    version = BaseVersion.parse(
        name, (directory / LINEAGE).read_bytes(), (directory / SIGNATURE).read_bytes()
    )
    version.check(spec, examples)
    try:
        preprocessing = load((directory / PREPROCESSING).read_bytes())
        with np.load(directory / WEIGHTS, allow_pickle=False) as kept:
            arrays = dict(kept)
        scale = SquaredError(*map(float, arrays.pop(_SCALE))) if _SCALE in arrays else None
        linear = arrays.pop(_LINEAR, None)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, NotPreprocessingError):
        raise FieldInvalidError(FIELD, name, "be a version that the trainer made") from None
    weights = _grouped(arrays, len(spec.networks))
    if digest([array for network in weights for array in network]) != version.weights_sha256:
        rule = "be a version whose weights are those that its lineage tells"
        raise FieldInvalidError(FIELD, name, rule)
    same_outputs = version.outputs == {
        output.name: ([-1, *output.shape], list(output.labels)) for output in outputs
    }
    if not same_outputs:
        log.warning("the labels are not those of %s: the last layer starts anew", name)
    return Base(
        version=version,
        preprocessing=preprocessing,
        weights=weights,
        scale=scale,
        linear=linear,
        same_outputs=same_outputs,
    )


def _grouped(arrays: Mapping[str, NDArray[Any]], networks: int) -> list[list[NDArray[Any]]]:
    """Return the arrays of `files` by network, in their order."""
    groups: list[list[NDArray[Any]]] = [[] for _ in range(networks)]
    for number, group in enumerate(groups):
        while (place := f"{number}/{len(group)}") in arrays:
            group.append(arrays[place])
    return groups

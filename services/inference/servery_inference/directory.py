"""Models from a directory: `<model>/<version>/model.onnx`, the newest version of each.

The directory is the operator's, read once, at the start.
"""

import logging
from functools import partial
from pathlib import Path

from servery_inference.engine import LoadFailedError
from servery_inference.loading import GRAPH, Bundle
from servery_inference.model_config import read_config
from servery_inference.repository import Repository
from servery_rpc.names import PRODUCTION

log = logging.getLogger(__name__)


def scan(root: Path) -> dict[str, list[int]]:
    """Find the models under `root` and the numbers of their versions, rising.

    Raises:
        OSError: `root` cannot be read.
    """
    return {
        model.name: sorted(
            int(version.name)
            for version in model.iterdir()
            if version.is_dir() and _is_version(version.name)
        )
        for model in sorted(root.iterdir())
        if model.is_dir() and not model.name.startswith(".")
    }


def serve_directory(root: Path, repository: Repository) -> None:
    """Serve the newest version of every model under `root`.

    Raises:
        OSError: `root` cannot be read.
    """
    for model, versions in scan(root).items():
        if not versions:
            log.warning("model %s has no version: no folder in it is a number from 1 up", model)
        targets = {PRODUCTION: versions[-1]} if versions else {}
        repository.want(model, targets, partial(_bundle, root / model))


async def _bundle(model: Path, number: int) -> Bundle:
    folder = model / str(number)
    if not (folder / GRAPH).is_file():
        raise LoadFailedError(f"the folder of the version has no {GRAPH}")
    return Bundle(folder, golden_required=False, config=read_config(model))


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name[0] != "0" and len(name) <= 18

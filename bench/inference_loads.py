"""What it takes to open graphs that were opened before: with and without what is known of them.

For each graph, the milliseconds of admission in the throw-away process, its start included, and of
the load in ONNX Runtime: without a directory of known graphs, the first time with one, and again.
Medians over interleaved rounds.

    python bench/inference_loads.py [--rounds 5] [ONNX ...]

Without names, the graphs of packages that `make test` installs into .venv-models.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inference_small import write

from servery_inference.graph_cache import GraphCache
from servery_inference.options import ModelOptions
from servery_inference.sandbox import AdmissionLimits, Sandbox
from servery_inference.sessions import open_engine

LIMITS: Final = AdmissionLimits(memory_bytes=16 << 30, wall_s=60)
MODELS: Final = Path(__file__).parent.parent / ".venv-models"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("graphs", type=Path, nargs="*", metavar="ONNX")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    found = args.graphs or sorted(MODELS.glob("lib/*/site-packages/*/**/*.onnx"))
    write(f"{'ms: admission + load':34} {'without':>13} {'the first time':>15} {'again':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for number, source in enumerate(found):
            graph = Path(folder) / str(number) / "model.onnx"
            graph.parent.mkdir()
            shutil.copy(source, graph)
            asyncio.run(measure(graph, source.name, args.rounds))
    return 0


async def measure(graph: Path, name: str, rounds: int) -> None:
    """Print one line."""
    columns: list[list[tuple[float, float]]] = [[], [], []]
    for number in range(rounds):
        known = graph.parent.parent / f"known-{graph.parent.name}-{number}"
        for column, root in zip(columns, (None, known, known), strict=True):
            column.append(await opened(graph, GraphCache(root) if root else None))
    texts = []
    for column in columns:
        admission, load = (statistics.median(part) for part in zip(*column, strict=True))
        texts.append(f"{admission:5.0f} + {load:3.0f}")
    write(f"{name:34} {texts[0]:>13} {texts[1]:>15} {texts[2]:>13}")


async def opened(graph: Path, cache: GraphCache | None) -> tuple[float, float]:
    """Return the milliseconds of admission and of the load."""
    async with Sandbox.open(LIMITS, cache) as sandbox:
        start = time.perf_counter()
        await sandbox.admit(graph)
        admitted = time.perf_counter()
        open_engine(graph, ModelOptions(), cache)
        return (admitted - start) * 1e3, (time.perf_counter() - admitted) * 1e3


if __name__ == "__main__":
    sys.exit(main())

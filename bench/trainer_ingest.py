"""How fast, and in how much memory, the trainer looks at a large CSV file.

    python bench/trainer_ingest.py [--gigabytes 1]

Makes the file in a temporary directory, reads it from end to end by `datasets.inspect`, as the
trainer does with an upload, and prints the rate beside that of `pyarrow.csv` over the same file in
the same run. Each reads in a process of its own, so that the largest memory is of one alone. Prints
one JSON document; exits with 1 if memory was over 1.5 GB.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.csv

from servery.trainer.v1 import dataset_pb2
from servery_trainer.datasets import inspect

_MOST_BYTES: Final = 1_500_000_000
_BLOCK_ROWS: Final = 20_000


class Measured(NamedTuple):
    """What a process took."""

    wall_s: float
    cpu_s: float
    rss_bytes: int
    rows: int


def main() -> int:
    """Make the file, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table.csv"
        rows = _write(path, int(arguments.gigabytes * 1e9))
        size = path.stat().st_size
        readers: dict[str, Callable[[Path], int]] = {
            "inspect": _inspect,
            "pyarrow.csv": _pyarrow,
            "pyarrow.csv, one thread": _pyarrow_alone,
        }
        found = {name: _measured(read, path) for name, read in readers.items()}
    report = {
        "bytes": size,
        "rows": rows,
        **{
            name: {
                "seconds": round(measured.wall_s, 2),
                "cpu_seconds": round(measured.cpu_s, 2),
                "megabytes_per_second": round(size / measured.wall_s / 1e6, 1),
                "largest_rss_megabytes": round(measured.rss_bytes / 1e6),
            }
            for name, measured in found.items()
        },
        "rate_by_pyarrow": round(found["pyarrow.csv"].wall_s / found["inspect"].wall_s, 3),
    }
    print(json.dumps(report, indent=2))
    if any(measured.rows != rows for measured in found.values()):
        raise RuntimeError("a reader lost rows")
    return int(found["inspect"].rss_bytes > _MOST_BYTES)


def _write(path: Path, size: int) -> int:
    """Write rows of numbers, categories, dates and truths, and return how many."""
    rng = np.random.Generator(np.random.PCG64(0))
    colors = np.array(["red", "green", "blue", "", "ultraviolet"])
    rows = 0
    with path.open("w") as file:
        file.write("id,price,weight,score,count,color,shop,day,sold,note\n")
        while file.tell() < size:
            floats = rng.normal(size=(_BLOCK_ROWS, 3)).round(6)
            counts = rng.integers(0, 1000, _BLOCK_ROWS)
            color = colors[rng.integers(0, len(colors), _BLOCK_ROWS)]
            shop = rng.integers(0, 5000, _BLOCK_ROWS)
            day = np.datetime64("2015-01-01") + rng.integers(0, 3650, _BLOCK_ROWS)
            sold = np.where(rng.random(_BLOCK_ROWS) < 0.3, "true", "false")
            note = rng.integers(0, 1 << 62, _BLOCK_ROWS)
            file.writelines(
                f"{rows + n},{a},{b},{c},{k},{x},shop {s},{d},{t},note {o:x}\n"
                for n, ((a, b, c), k, x, s, d, t, o) in enumerate(
                    zip(
                        floats.tolist(),
                        counts.tolist(),
                        color.tolist(),
                        shop.tolist(),
                        np.datetime_as_string(day).tolist(),
                        sold.tolist(),
                        note.tolist(),
                        strict=True,
                    )
                )
            )
            rows += _BLOCK_ROWS
    return rows


def _measured(read: Callable[[Path], int], path: Path) -> Measured:
    """Measure a new process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(read, path, there))
    process.start()
    found: Measured = here.recv()
    process.join()
    return found


def _run(read: Callable[[Path], int], path: Path, answer: Any) -> None:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    rows = read(path)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send(Measured(wall_s, cpu_s, rss_bytes, rows))


def _inspect(path: Path) -> int:
    return inspect(path, dataset_pb2.DATASET_FORMAT_CSV).row_count


def _pyarrow(path: Path, *, use_threads: bool = True) -> int:
    options = pyarrow.csv.ReadOptions(use_threads=use_threads)
    return sum(batch.num_rows for batch in pyarrow.csv.open_csv(path, read_options=options))


def _pyarrow_alone(path: Path) -> int:
    return _pyarrow(path, use_threads=False)


if __name__ == "__main__":
    sys.exit(main())

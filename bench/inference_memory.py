"""What an idle server takes: resident memory, and the time until it is ready.

Starts the inference process on one small model (dense, 784-128-10), waits until it is ready and
the throw-away process of admission is gone, and reads what the kernel says about it: RSS, and PSS,
where pages that several processes share count for a part. Asked for are less than 120 MB.

    python bench/inference_memory.py [--rounds 3]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inference_small import save_dense, write

LIMIT_MB: Final = 120
IDLE_S: Final = 4.0
"""Longer than admission keeps its process."""

WAYS: Final = {
    "grpcio": (),
    "fast": ("--transport", "fast"),
    "fast, HTTP, metrics": ("--transport", "fast", "--http-port", "0", "--metrics-port", "0"),
    "fast, traces": ("--transport", "fast", "--otlp-endpoint", "http://127.0.0.1:1"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status: 1 if a server takes more than asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    is_much = False
    write(f"{'':22} {'RSS MB':>7} {'PSS MB':>7} {'ready after':>12}")
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "models" / "dense" / "1" / "model.onnx"
        graph.parent.mkdir(parents=True)
        save_dense(graph)
        for name, flags in WAYS.items():
            measured = [idle(Path(folder), flags) for _ in range(args.rounds)]
            rss, pss, ready = (statistics.median(values) for values in zip(*measured, strict=True))
            write(f"{name:22} {rss:7.0f} {pss:7.0f} {ready:10.2f} s")
            is_much = is_much or rss >= LIMIT_MB
    return int(is_much)


def idle(folder: Path, flags: Sequence[str]) -> tuple[float, float, float]:
    """Return megabytes of RSS and of PSS, and seconds until a server is ready."""
    start = time.perf_counter()
    command = [
        *(sys.executable, "-m", "servery_inference", "--listen", f"unix:{folder}/i.sock"),
        *("--model-repository", str(folder / "models"), *flags),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603  our own
    try:
        for line in process.stderr or ():
            if "inference is ready" in line:
                break
        ready = time.perf_counter() - start
        time.sleep(IDLE_S)
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        return kib["Rss"] / 1024, kib["Pss"] / 1024, ready
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())

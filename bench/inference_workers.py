"""What worker processes bring: requests per second and CPU by their number.

Runs, in interleaved rounds and under the same load, one server with each number of workers. The
load (transport_load.py) comes from this process over several connections and keeps so many
requests open. Prints requests per second, CPU microseconds per request of the server (all its
processes, user and system) and of the load, the ratio of requests per second to the first server,
and what the ratio would be if cores were free: as many processes, each at its CPU per request.
Where server and load keep all cores busy, the first ratio says more about the machine than about
the server.

    python bench/inference_workers.py [--workers 1 2] [--concurrency 32] [--connections 8]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import uvloop
from inference_small import (
    SHAPES,
    Case,
    cpu_s,
    free_port,
    load,
    request_body,
    running,
    save_conv,
    save_dense,
    save_mean,
    until_answered,
    write,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--model", choices=SHAPES, default="dense")
    args = parser.parse_args(argv)
    case = Case(args.model, args.connections, args.seconds, None)
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure(Path(folder), case, args.workers, args.rounds, args.concurrency))
    return 0


async def measure(
    folder: Path, case: Case, numbers: Sequence[int], rounds: int, concurrency: int
) -> None:
    """Run the rounds and print the table."""
    graph = folder / case.model / "1" / "model.onnx"
    graph.parent.mkdir(parents=True)
    save = {"dense": save_dense, "conv": save_conv}.get(case.model, partial(save_mean, case.model))
    save(graph)
    body = request_body(case.model)
    rates: dict[int, list[float]] = defaultdict(list)
    costs: dict[int, list[float]] = defaultdict(list)
    loads: dict[int, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        servers = {}
        for number in numbers:
            port = free_port()
            command = [
                *("-m", "servery_inference", "--model-repository", str(folder)),
                *("--grpc-port", str(port), "--workers", str(number), "--log-level", "error"),
            ]
            servers[number] = stack.enter_context(running(command)), port
        for _, port in servers.values():
            await until_answered(f"127.0.0.1:{port}", body, None)
            await load(case, port, body, concurrency)  # Warm.
        for _ in range(rounds):
            for number, (pid, port) in servers.items():
                before, began, own = total_cpu_s(pid), time.perf_counter(), time.process_time()
                done = await load(case, port, body, concurrency)
                rates[number].append(done / (time.perf_counter() - began))
                costs[number].append((total_cpu_s(pid) - before) / done * 1e6)
                loads[number].append((time.process_time() - own) / done * 1e6)
    write(
        f"{case.model}: {concurrency} requests at once over {case.connections} connections,"
        f" {rounds} rounds of {case.seconds} s, {os.cpu_count()} cores,"
        f" load average {os.getloadavg()[0]:.1f}"
    )
    write(f"workers {'req/s':>8} {'server µs':>10} {'load µs':>8} {'ratio':>6} {'cores free':>11}")
    first = numbers[0]
    for number in numbers:
        rate, cost = statistics.median(rates[number]), statistics.median(costs[number])
        ratios = [own / base for own, base in zip(rates[number], rates[first], strict=True)]
        free = number / first * statistics.median(costs[first]) / cost
        write(
            f"{number:7} {rate:8.0f} {cost:10.1f} {statistics.median(loads[number]):8.1f}"
            f" {statistics.median(ratios):6.2f} {free:11.2f}"
        )


def total_cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process and its children have used."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = {int(child) for each in lists for child in each.read_text().split()}
    return sum(cpu_s(each) for each in (pid, *children))


if __name__ == "__main__":
    sys.exit(main())

"""The throw-away process that opens graphs first: `python -m servery_inference.admission`.

It reads one JSON object a line, `{"graph": path}`, forks for each, and answers with one line: what
the graph needs, or `problem` in words. The fork limits itself, walks the graph, loads it in ONNX
Runtime and runs it once. Whatever a file does to that fork, the server lives.
"""

import argparse
import json
import mmap
import os
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from servery_inference.graph_walk import GraphRefusedError, walk
from servery_inference.signature import Signature
from servery_inference.warmup import zeros

_MAX_WORDS: Final = 250
_PLACES: Final = re.compile(r"(?<![\w.])/[^\s:'\"]+(:\d+)?|\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NO_MEMORY: Final = re.compile(r"alloc", re.IGNORECASE)
_FAULTS: Final = ort.capi.onnxruntime_pybind11_state
_LOG_FATAL: Final = 4
_KIB: Final = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--cpu-s", type=int, required=True)
    args = parser.parse_args(argv)
    for line in sys.stdin:
        verdict = _forked(Path(json.loads(line)["graph"]), args.memory_bytes, args.cpu_s)
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    return 0


def _forked(graph: Path, memory_bytes: int, cpu_s: int) -> dict[str, Any]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            _limit(memory_bytes, cpu_s)
            os.write(theirs, json.dumps(_verdict(graph)).encode())
        finally:  # Not through the destructors of a graph that may have broken the heap.
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:  # noqa: PTH123  a descriptor has no path
        answer = pipe.read(64 * _KIB)
    _, status = os.waitpid(child, 0)
    try:
        verdict = json.loads(answer) if status == 0 else None
    except (ValueError, RecursionError):
        verdict = None
    if not isinstance(verdict, dict):
        return {
            "problem": "broke the process that loaded it first, which may use"
            f" {memory_bytes} bytes of memory and {cpu_s} s of a processor"
        }
    return verdict


def _limit(memory_bytes: int, cpu_s: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),  # No byte of any file can be written.
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _verdict(graph: Path) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with graph.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                raise GraphRefusedError("is empty")
            with (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
                memoryview(data) as view,
            ):
                walk(view)
        _try(graph)
    except GraphRefusedError as error:
        return {"problem": str(error)}
    except (MemoryError, RecursionError):
        return {"problem": "needs more memory to be read than this server allows"}
    except OSError as error:
        return {"problem": f"cannot be read: {error.strerror}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_bytes": (peak - before) * _KIB}


def _try(graph: Path) -> None:
    """Load a graph, and run it once on zeros."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except MemoryError:
        raise
    except _FAULTS.NotImplemented:
        return  # A kernel may be there on another provider; the load proper decides.
    except Exception as error:  # ONNX Runtime's errors share no narrower base.
        raise GraphRefusedError(f"cannot be loaded: {_words(error)}") from None
    try:
        signature = Signature.of(session.get_inputs(), session.get_outputs())
        session.run(None, zeros(signature, 1))
    except MemoryError:
        raise
    except Exception as error:
        # Zeros are no real input: what refuses them may still be a good model.
        if _NO_MEMORY.search(str(error)):
            raise GraphRefusedError(
                f"needs more memory to run than this server allows: {_words(error)}"
            ) from None


def _words(error: Exception) -> str:
    return " ".join(_PLACES.sub("", str(error)).split())[:_MAX_WORDS]


if __name__ == "__main__":
    sys.exit(main())

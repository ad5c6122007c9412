"""Runs of a model before its first request: its buffers get made, and its speed is learned."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.datatypes import BY_CONFIG
from servery_inference.engine import Engine, LoadFailedError, RunFailedError
from servery_inference.raw_files import is_possible, read_tensor
from servery_inference.request import Array
from servery_inference.signature import Signature

SAMPLES: Final = "warmup"
"""Folder beside the versions with the files that `model_warmup` names."""

_REPEATS: Final = 3
_INLINE_S: Final = 0.001
_BEYOND_MEASURED: Final = 8
_GUESSED_S: Final = 0.02
_GUESSED_ELEMENTS: Final = 1 << 20
_MAX_SAMPLES: Final = 1000
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Warmth:
    """What the runs before the first request taught."""

    inline_elements: int
    """Up to how many input elements a run takes less than a millisecond."""

    points: tuple[tuple[int, float], ...] = ()
    """Input elements and seconds of every batch size that was run, rising."""


def batch_sizes(max_batch_size: int, preferred: Iterator[int] | tuple[int, ...] = ()) -> list[int]:
    """Return the batch sizes to warm: powers of two, those preferred, and the largest."""
    powers = [1 << power for power in range(max_batch_size.bit_length())]
    return sorted({*powers, *preferred, max_batch_size})


def warm_up(
    engine: Engine,
    rows: Callable[[int], dict[str, Array]] | None,
    sizes: list[int],
    *,
    all_sizes: bool,
) -> Warmth:
    """Run a graph at several batch sizes.

    Args:
        engine: The graph.
        rows: Returns that many rows of real input; None for zeros.
        sizes: The batch sizes, rising; one that means nothing for a model without a batch.
        all_sizes: Whether each must be run. If not, it ends at what takes long or is large: then
            the sizes are not what somebody chose, but what the graph would allow.

    Raises:
        RunFailedError: The graph refuses the input.
    """
    signature = engine.signature
    make = rows or (lambda count: zeros(signature, count))
    points: list[tuple[int, float]] = []
    for count in sizes:
        feed = make(count)
        elements = sum(array.size for array in feed.values())
        if not all_sizes and points and elements > _GUESSED_ELEMENTS:
            break
        seconds = min(_seconds(engine, feed) for _ in range(_REPEATS))
        points.append((elements, seconds))
        if not all_sizes and seconds > _GUESSED_S:
            break
    return Warmth(inline_elements(points), tuple(points))


def inline_elements(points: list[tuple[int, float]]) -> int:
    """Extrapolate `(elements, seconds)`, by rising size, to what runs in under a millisecond.

    At most 8 times the largest that was measured; 0 if even the smallest takes longer.
    """
    (small, fast), (large, slow) = points[0], points[-1]
    if fast >= _INLINE_S:
        return 0
    if small == large:
        return small
    per_element = max((slow - fast) / (large - small), 1e-12)
    return min(small + int((_INLINE_S - fast) / per_element), large * _BEYOND_MEASURED)


def run_samples(engine: Engine, config: pb.ModelConfig, folder: Path) -> None:
    """Run what `model_warmup` of a config asks for.

    Args:
        engine: The model.
        config: Resolved.
        folder: Of the model.

    Raises:
        LoadFailedError: A sample is malformed, or the graph refuses it.
    """
    signature = engine.signature
    for sample in config.model_warmup:
        name = sample.name[:100]
        batch = (max(1, sample.batch_size),) if config.max_batch_size else ()
        if sample.batch_size > max(1, config.max_batch_size):
            raise LoadFailedError(
                f"model_warmup '{name}' has the batch size {sample.batch_size}, but max_batch_size"
                f" is {config.max_batch_size}"
            )
        if sample.count > _MAX_SAMPLES:
            raise LoadFailedError(f"model_warmup '{name}' has a count above {_MAX_SAMPLES}")
        feed = {
            key: _sample_input(f"model_warmup '{name}': input '{key[:100]}'", given, batch, folder)
            for key, given in sample.inputs.items()
        }
        known = {**signature.inputs, **signature.optional_inputs}
        shapes = {io.name: tuple(io.reshape.shape) for io in config.input if io.HasField("reshape")}
        for key, array in feed.items():
            if key not in known or array.dtype != known[key].datatype.numpy:
                raise LoadFailedError(f"model_warmup '{name}': input '{key[:100]}' does not fit")
            if key in shapes and -1 not in shapes[key]:
                feed[key] = array.reshape((*batch, *shapes[key]))
        try:
            for _ in range(max(1, sample.count)):
                engine.run(feed, list(signature.outputs))
        except (RunFailedError, ValueError) as error:
            raise LoadFailedError(f"model_warmup '{name}' cannot be run: {error}") from None


def zeros(signature: Signature, count: int) -> dict[str, Array]:
    """Return `count` rows of zeros or empty texts, every other free axis 1."""
    feed: dict[str, Array] = {}
    for tensor in signature.inputs.values():
        free = [1 if size == -1 else size for size in tensor.shape]
        if signature.is_batched:
            free[0] = count
        empty = "" if tensor.datatype.is_bytes else 0
        feed[tensor.name] = np.full(free, empty, tensor.datatype.numpy)
    return feed


def _sample_input(
    what: str, given: pb.ModelWarmup.Input, batch: tuple[int, ...], folder: Path
) -> Array:
    datatype = BY_CONFIG.get(given.data_type)
    shape = (*batch, *given.dims)
    if datatype is None or not is_possible(shape):
        raise LoadFailedError(f"{what} needs a data_type and dims of known, sensible size")
    if given.WhichOneof("input_data_type") == "input_data_file":
        return read_tensor(what, folder / SAMPLES, given.input_data_file, datatype, shape)
    if datatype.is_bytes:
        return np.full(shape, "", object)
    if given.random_data:
        random = np.random.default_rng(_SEED)
        return _random(random, datatype.numpy, shape)
    return np.zeros(shape, datatype.numpy)


def _random(random: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    high = 2 if dtype.kind == "b" else int(np.iinfo(dtype).max)
    return random.integers(0, high, shape, np.uint64).astype(dtype)


def _seconds(engine: Engine, feed: Mapping[str, Array]) -> float:
    start = time.perf_counter()
    engine.run(feed, list(engine.signature.outputs))
    return time.perf_counter() - start

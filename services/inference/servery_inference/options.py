"""How one model is run: what its config asks of ONNX Runtime, within what this process may use."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

import onnxruntime as ort

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.accelerators import TENSORRT, OptionsUnsupportedError, accelerators
from servery_inference.cores import usable_cores

Provider = Literal["cpu", "cuda"]
PROVIDERS: Final[Mapping[str, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
_Group = pb.ModelInstanceGroup
_KINDS: Final[Mapping[int, Provider]] = {_Group.KIND_GPU: "cuda", _Group.KIND_CPU: "cpu"}
NO_OPTIMISATION: Final = 2
_LEVELS: Final = (-1, 0, 1, NO_OPTIMISATION)
_MAX_RECORDED: Final = 64
_SHOWN_CHARACTERS: Final = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How sessions run whose config does not say otherwise."""

    provider: Provider = "cpu"

    intra_op_threads: int = 1
    """Threads that share one run. More than 1 shortens long runs and costs throughput."""

    auto_max_batch_size: int = 8192
    """`max_batch_size` of models that can batch and do not say how much; 0: they do not batch."""

    cores: int = field(default_factory=usable_cores)
    """What the models may use together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How one model runs."""

    provider: Provider = "cpu"

    device_ids: tuple[int, ...] = (0,)
    """GPUs that get a session each; one number that means nothing on a CPU."""

    instances: int = 1
    """Runs of the model at the same time. On one device they share a session."""

    intra_op_threads: int = 1
    inter_op_threads: int = 1

    parallel: bool = False
    """Whether branches of the graph run side by side, on `inter_op_threads`."""

    graph_level: int = 0
    """As Triton has it: -1 basic, 0 all, 1 extended, 2 no optimisation."""

    memory_arena: bool = True
    memory_pattern: bool = True
    denormal_as_zero: bool = False

    cuda_options: tuple[tuple[str, str], ...] = ()

    tensorrt_options: tuple[tuple[str, str], ...] | None = None
    """None to run without TensorRT."""

    is_bound: bool = False
    """Whether tensors stay at fixed places of the device."""

    recorded_sizes: tuple[int, ...] = ()
    """Batch sizes to record as CUDA graphs, rising; see `BoundSession`."""

    @property
    def num_threads(self) -> int:
        """Threads that one run may keep busy."""
        return max(self.intra_op_threads, self.inter_op_threads if self.parallel else 1)

    @classmethod
    def of(cls, config: pb.ModelConfig, settings: EngineSettings) -> Self:
        """Read a config, complete or not.

        More threads than there are cores are not given.

        Raises:
            OptionsUnsupportedError: It asks for what is not there, or contradicts itself.
        """
        cores = settings.cores
        provider, device_ids, count = _placement(config, settings)
        intra = _threads(config, "intra_op_thread_count", settings.intra_op_threads, cores)
        inter = _threads(config, "inter_op_thread_count", 1, cores)
        level = config.optimization.graph.level
        if level not in _LEVELS:
            raise OptionsUnsupportedError(
                f"optimization.graph.level is {level}; it must be -1 (basic), 0 (all), 1 (extended)"
                " or 2 (none)"
            )
        cuda_options, tensorrt_options = accelerators(config, provider)
        recorded_sizes = _recorded_sizes(config, provider)
        if recorded_sizes and tensorrt_options is None:
            cuda_options = (*cuda_options, ("enable_cuda_graph", "1"))
        elif recorded_sizes and tensorrt_options is not None:
            tensorrt_options = (*tensorrt_options, ("trt_cuda_graph_enable", "1"))
        return cls(
            provider=provider,
            device_ids=device_ids,
            instances=count or max(1, cores // intra),
            intra_op_threads=intra,
            inter_op_threads=inter,
            parallel=_number(config, "execution_mode", 0, 1) == 1,
            graph_level=level,
            memory_arena=_number(config, "enable_mem_arena", 1, 1) == 1,
            memory_pattern=_number(config, "enable_mem_pattern", 1, 1) == 1,
            denormal_as_zero=_number(config, "session.set_denormal_as_zero", 0, 1) == 1,
            cuda_options=cuda_options,
            tensorrt_options=tensorrt_options,
            is_bound=_number(config, "io_binding", int(provider == "cuda"), 1) == 1,
            recorded_sizes=recorded_sizes,
        )

    def session_options(self, *, is_optimised: bool = False) -> ort.SessionOptions:
        """Return them as ONNX Runtime takes them.

        Args:
            is_optimised: Whether the graph went through it before, at the same level.
        """
        levels = ort.GraphOptimizationLevel
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.intra_op_threads
        options.inter_op_num_threads = self.inter_op_threads
        options.graph_optimization_level = {
            -1: levels.ORT_ENABLE_BASIC,
            0: levels.ORT_ENABLE_ALL,
            1: levels.ORT_ENABLE_EXTENDED,
            NO_OPTIMISATION: levels.ORT_DISABLE_ALL,
        }[NO_OPTIMISATION if is_optimised else self.graph_level]
        if self.parallel:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = self.memory_arena
        options.enable_mem_pattern = self.memory_pattern
        # A pool that spins takes the cores that the transport and other models work on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if self.denormal_as_zero:
            options.add_session_config_entry("session.set_denormal_as_zero", "1")
        return options

    def providers(self, device_id: int) -> list[tuple[str, dict[str, str]]]:
        """Return the execution providers of a session on one device, the wanted one first."""
        cpu: tuple[str, dict[str, str]] = (PROVIDERS["cpu"], {})
        if self.provider == "cpu":
            return [cpu]
        cuda = (PROVIDERS["cuda"], {"device_id": str(device_id), **dict(self.cuda_options)})
        if self.tensorrt_options is not None:
            tensorrt = {"device_id": str(device_id), **dict(self.tensorrt_options)}
            return [(TENSORRT, tensorrt), cuda, cpu]
        return [cuda, cpu]


def _placement(
    config: pb.ModelConfig, settings: EngineSettings
) -> tuple[Provider, tuple[int, ...], int]:
    """The provider, the devices, and how many instances; 0 if that is not said."""
    providers: set[Provider] = set()
    gpus: list[int] = []
    count = 0
    for group in config.instance_group:
        if group.count < 0:
            raise OptionsUnsupportedError(f"instance_group.count is {group.count}; it must be > 0")
        if group.passive or group.secondary_devices:
            raise OptionsUnsupportedError(
                "instance_group asks for passive instances or secondary devices, which are not"
                " offered"
            )
        providers.add(_KINDS.get(group.kind, "cuda" if group.gpus else settings.provider))
        gpus += [gpu for gpu in group.gpus if gpu not in gpus]
        count += group.count * max(1, len(group.gpus))
    if len(providers) > 1:
        raise OptionsUnsupportedError("instance_group mixes KIND_CPU and KIND_GPU; use one of them")
    provider = next(iter(providers), settings.provider)
    if provider == "cuda" and PROVIDERS["cuda"] not in ort.get_available_providers():
        raise OptionsUnsupportedError(
            "instance_group asks for KIND_GPU, but the installed ONNX Runtime was built without"
            f" {PROVIDERS['cuda']}; use KIND_CPU, or install servery[inference-gpu]"
        )
    if provider == "cpu" and gpus:
        raise OptionsUnsupportedError("instance_group lists gpus for KIND_CPU; leave them out")
    return provider, tuple(gpus) or (0,), count


def _recorded_sizes(config: pb.ModelConfig, provider: Provider) -> tuple[int, ...]:
    """Return the batch sizes to record as CUDA graphs; empty if that is not asked for."""
    cuda = config.optimization.cuda
    if not cuda.graphs:
        return ()
    if provider != "cuda":
        raise OptionsUnsupportedError(
            "optimization.cuda.graphs is for KIND_GPU; leave it out on a CPU, where nothing can be"
            " recorded"
        )
    if any(spec.input or spec.HasField("graph_lower_bound") for spec in cuda.graph_spec):
        raise OptionsUnsupportedError(
            "optimization.cuda.graph_spec may only give batch_size: a graph is recorded for the"
            " shapes that the model has, and smaller batches are filled up"
        )
    if cuda.graph_spec:
        return tuple(sorted({max(1, spec.batch_size) for spec in cuda.graph_spec}))
    largest = config.max_batch_size or 1
    powers = [1 << power for power in range(min(largest, _MAX_RECORDED).bit_length())]
    preferred = [size for size in config.dynamic_batching.preferred_batch_size if size <= largest]
    return tuple(sorted({*powers, *preferred}))


def _threads(config: pb.ModelConfig, key: str, default: int, cores: int) -> int:
    wanted = _number(config, key, default, 1024) or cores
    if wanted > cores:
        log.warning("%s is %s; given are the %s cores there are", key, wanted, cores)
    return min(wanted, cores)


def _number(config: pb.ModelConfig, key: str, default: int, largest: int) -> int:
    if key not in config.parameters:
        return default
    text = config.parameters[key].string_value.strip()
    if not text.isdecimal() or int(text) > largest:
        raise OptionsUnsupportedError(
            f"parameter {key!r} is {text[:_SHOWN_CHARACTERS]!r}; it must be 0 to {largest}"
        )
    return int(text)

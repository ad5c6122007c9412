"""What `execution_accelerators` of a config means to ONNX Runtime: options of its providers.

Only options are taken that name no file: where files lie is the operator's choice, and some of them
would be run as code. What is not known is refused, for it would be silently without effect.
"""

from collections.abc import Mapping
from typing import Final

import onnxruntime as ort

from servery.inference.v1 import model_config_pb2 as pb

TENSORRT: Final = "TensorrtExecutionProvider"

Options = tuple[tuple[str, str], ...]

_CUDA: Final = frozenset(
    {
        "arena_extend_strategy",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "do_copy_in_default_stream",
        "gpu_mem_limit",
        "prefer_nhwc",
        "use_ep_level_unified_stream",
        "use_tf32",
    }
)
_CUDA_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
}
"""What configs give by number, and ONNX Runtime takes by name."""

_TENSORRT: Final = frozenset(
    {
        "trt_auxiliary_streams",
        "trt_build_heuristics_enable",
        "trt_builder_optimization_level",
        "trt_context_memory_sharing_enable",
        "trt_cuda_graph_enable",
        "trt_force_sequential_engine_build",
        "trt_layer_norm_fp32_fallback",
        "trt_max_partition_iterations",
        "trt_min_subgraph_size",
        "trt_profile_max_shapes",
        "trt_profile_min_shapes",
        "trt_profile_opt_shapes",
        "trt_sparsity_enable",
    }
)
_PRECISIONS: Final[Mapping[str, Options]] = {
    "FP32": (),
    "FP16": (("trt_fp16_enable", "1"),),
    "INT8": (("trt_int8_enable", "1"),),
}
_TRUTHS: Final = {"true": "1", "false": "0"}
_SHOWN_CHARACTERS: Final = 100


class OptionsUnsupportedError(Exception):
    """A config asks for what this process or machine does not have; the message says what."""


def accelerators(config: pb.ModelConfig, provider: str) -> tuple[Options, Options | None]:
    """Return the options of CUDA, and those of TensorRT; None to run without it.

    Args:
        config: Complete or not.
        provider: `cpu` or `cuda`.

    Raises:
        OptionsUnsupportedError: An accelerator is not there, or an option of it is not offered.
    """
    wanted = config.optimization.execution_accelerators
    cuda: dict[str, str] = {}
    tensorrt: Options | None = None
    if provider == "cuda":
        given = {key: value.string_value for key, value in config.parameters.items()}
        cuda = _cuda({key: given[key] for key in sorted(_CUDA & given.keys())})
    on_gpu = [(accelerator, provider == "cuda") for accelerator in wanted.gpu_execution_accelerator]
    on_cpu = [(accelerator, False) for accelerator in wanted.cpu_execution_accelerator]
    for accelerator, fits in on_cpu + on_gpu:
        if accelerator.name == "cuda" and fits:
            cuda |= _cuda(accelerator.parameters)
        elif accelerator.name == "tensorrt" and fits and TENSORRT in ort.get_available_providers():
            tensorrt = _tensorrt(accelerator.parameters)
        else:
            raise OptionsUnsupportedError(
                f"the execution accelerator '{accelerator.name[:_SHOWN_CHARACTERS]}' is not there;"
                " leave it out to run on the execution provider itself"
            )
    return tuple(cuda.items()), tensorrt


def _cuda(parameters: Mapping[str, str]) -> dict[str, str]:
    options = {}
    for key, value in parameters.items():
        if key not in _CUDA:
            raise _unknown("cuda", key)
        choices = _CUDA_CHOICES.get(key, ())
        is_number = value.isdecimal() and int(value) < len(choices)
        options[key] = choices[int(value)] if is_number else _TRUTHS.get(value.lower(), value)
    return options


def _tensorrt(parameters: Mapping[str, str]) -> Options:
    options: dict[str, str] = {}
    for key, value in parameters.items():
        if key == "precision_mode" and value in _PRECISIONS:
            options |= dict(_PRECISIONS[value])
        elif key == "max_workspace_size_bytes":
            options["trt_max_workspace_size"] = value
        elif key in _TENSORRT:
            options[key] = _TRUTHS.get(value.lower(), value)
        else:
            raise _unknown("tensorrt", key)
    return tuple(options.items())


def _unknown(accelerator: str, key: str) -> OptionsUnsupportedError:
    return OptionsUnsupportedError(
        f"the execution accelerator '{accelerator}' has the parameter {key[:_SHOWN_CHARACTERS]!r},"
        " or a value of it, that is not offered"
    )

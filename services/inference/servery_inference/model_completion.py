"""A config completed from the ONNX graph it is for, or refused where the two contradict.

Dims leave the batch out where `max_batch_size` is above 0; a `Signature` has every axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.engine import LoadFailedError
from servery_inference.model_config import (
    BACKEND,
    ENSEMBLE,
    GRAPH,
    PLATFORM,
    GivenConfig,
    Io,
    inner_dims,
)
from servery_inference.options import ModelOptions
from servery_inference.signature import Signature, Tensor


def resolve(
    model: str,
    given: GivenConfig,
    graph: Signature,
    options: ModelOptions,
    auto_max_batch_size: int,
) -> pb.ModelConfig:
    """Complete `given` from a graph, and fill in what clients expect to find.

    Where no `max_batch_size` was written and the first axis of every input and output of the graph
    is free, it becomes `auto_max_batch_size` with dynamic batching, unless the dims written show
    that the writer counts the first axis among them.

    Args:
        model: Name on the wire.
        given: What was written.
        graph: What the graph declares.
        options: How the model runs.
        auto_max_batch_size: 0 to guess no batching.

    Raises:
        LoadFailedError: `given` is for another backend, or contradicts the graph.
    """
    config = pb.ModelConfig()
    config.CopyFrom(given.message)
    _check_names(model, config)
    _check_offered(config)
    graph = _without_sequence_tensors(config, graph)
    _complete_batching(config, given, graph, auto_max_batch_size)
    _complete_tensors(
        "input", config.input, graph.inputs, graph.optional_inputs, config.max_batch_size
    )
    _complete_tensors("output", config.output, graph.outputs, {}, config.max_batch_size)
    _check_optional(config, graph)
    _fill_in(model, config, options)
    return config


def _without_sequence_tensors(config: pb.ModelConfig, graph: Signature) -> Signature:
    """Leave out what the server itself feeds and keeps: signals and states of sequences."""
    batching = config.sequence_batching
    fed = {control.name for control in batching.control_input}
    fed |= {state.input_name for state in batching.state}
    written = {output.name for output in config.output}
    kept = {state.output_name for state in batching.state} - written
    return replace(
        graph,
        inputs={name: tensor for name, tensor in graph.inputs.items() if name not in fed},
        outputs={name: tensor for name, tensor in graph.outputs.items() if name not in kept},
    )


def _check_names(model: str, config: pb.ModelConfig) -> None:
    if config.name and config.name != model:
        raise LoadFailedError(
            f"the config is of the model '{config.name[:100]}', but the model is called '{model}';"
            " leave `name` out or make them equal"
        )
    if config.platform not in ("", PLATFORM):
        raise LoadFailedError(
            f"the platform '{config.platform[:100]}' is not offered; this server runs"
            f" '{PLATFORM}' and '{ENSEMBLE}'"
        )
    if config.backend not in ("", BACKEND):
        raise LoadFailedError(
            f"the backend '{config.backend[:100]}' is not offered; this server runs '{BACKEND}'"
        )
    if config.max_batch_size < 0:
        raise LoadFailedError(f"max_batch_size is {config.max_batch_size}; it must be at least 0")


def _check_offered(config: pb.ModelConfig) -> None:
    asked = {
        "model_transaction_policy.decoupled": config.model_transaction_policy.decoupled,
        "batch_input": config.batch_input,
        "batch_output": config.batch_output,
        "allow_ragged_batch": any(io.allow_ragged_batch for io in config.input),
    }
    for name, value in asked.items():
        if value:
            raise LoadFailedError(
                f"{name} is not offered: a request to an ONNX graph gets one answer, and shares a"
                " run only with requests of the same shapes; leave it out"
            )


def _complete_batching(
    config: pb.ModelConfig, given: GivenConfig, graph: Signature, auto_max_batch_size: int
) -> None:
    tensors = [*graph.inputs.values(), *graph.outputs.values()]
    can_batch = bool(graph.inputs) and all(tensor.is_batched for tensor in tensors)
    if config.max_batch_size:
        return
    known = {**graph.inputs, **graph.outputs}
    written: list[Io] = [*config.input, *config.output]
    whole = any(
        io.dims and io.name in known and len(io.dims) == len(known[io.name].shape) for io in written
    )
    if can_batch and not whole and not given.names_max_batch_size and auto_max_batch_size:
        config.max_batch_size = auto_max_batch_size
        if auto_max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()


def _complete_tensors(
    kind: str,
    listed: Any,
    graph: Mapping[str, Tensor],
    optional: Mapping[str, Tensor],
    max_batch_size: int,
) -> None:
    if not listed:
        for name in graph:
            listed.add(name=name)
    seen: set[str] = set()
    for io in listed:
        tensor: Tensor | None = graph.get(io.name) or optional.get(io.name)
        if tensor is None:
            allowed = ", ".join(graph)
            raise LoadFailedError(
                f"unexpected inference {kind} '{io.name[:100]}', allowed {kind}s are: {allowed}"
            )
        if io.name in seen:
            raise LoadFailedError(f"{kind} '{io.name}' is there twice in the config")
        seen.add(io.name)
        _complete_tensor(kind, io, tensor, max_batch_size)
    if kind == "input" and (missing := [name for name in graph if name not in seen]):
        raise LoadFailedError(
            f"the config has {len(seen)} inputs, but the graph has {len(graph)}; it lacks"
            f" {', '.join(repr(name) for name in missing)}"
        )


def _check_optional(config: pb.ModelConfig, graph: Signature) -> None:
    for io in config.input:
        if io.optional and io.name in graph.inputs:
            raise LoadFailedError(
                f"input '{io.name}' is optional in the config, but the graph has no default for it"
            )


def _complete_tensor(kind: str, io: Io, tensor: Tensor, max_batch_size: int) -> None:
    if not io.data_type:
        io.data_type = tensor.datatype.config
    elif io.data_type != tensor.datatype.config:
        raise LoadFailedError(
            f"{kind} '{io.name}' is {pb.DataType.Name(io.data_type)} in the config, but"
            f" {pb.DataType.Name(tensor.datatype.config)} in the graph"
        )
    if max_batch_size and not tensor.is_batched:
        raise LoadFailedError(
            f"max_batch_size is {max_batch_size}, but the graph fixes the first axis of {kind}"
            f" '{io.name}': it cannot batch; set max_batch_size to 0 and write every axis in dims"
        )
    own = list(tensor.shape[1:] if max_batch_size else tensor.shape)
    if not io.dims and not io.HasField("reshape"):
        io.dims.extend(own)
    _check_sizes(kind, io.name, "dims", io.dims)
    inner = inner_dims(io)
    if io.HasField("reshape"):
        _check_sizes(kind, io.name, "reshape", inner)
        _check_reshape(kind, io.name, io.dims, inner)
    if len(inner) != len(own) or any(
        size not in (-1, said) for size, said in zip(own, inner, strict=True)
    ):
        raise LoadFailedError(
            f"{kind} '{io.name}' has the dims {inner} in the config, but {own} in the"
            " graph"
            + (" (the batch left out, for max_batch_size is above 0)" if max_batch_size else "")
        )


def _check_sizes(kind: str, name: str, field: str, sizes: Iterable[int]) -> None:
    if any(size < -1 for size in sizes):
        raise LoadFailedError(
            f"{kind} '{name}': {field} has a size below -1; sizes are 0 or more, or -1 if free"
        )


def _check_reshape(kind: str, name: str, dims: Sequence[int], inner: Sequence[int]) -> None:
    if _volumes(dims) != _volumes(inner):
        raise LoadFailedError(
            f"{kind} '{name}': dims {list(dims)} cannot be reshaped to {list(inner)}; between two"
            " free axes the numbers of elements must be equal"
        )


def _volumes(shape: Sequence[int]) -> list[int]:
    """The element counts of the runs of fixed sizes that free axes part."""
    volumes = [1]
    for size in shape:
        if size == -1:
            volumes.append(1)
        else:
            volumes[-1] *= size
    return volumes


def _fill_in(model: str, config: pb.ModelConfig, options: ModelOptions) -> None:
    config.name = model
    config.platform = PLATFORM
    config.backend = BACKEND
    config.default_model_filename = config.default_model_filename or GRAPH
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    for memory in ("input_pinned_memory", "output_pinned_memory"):
        if not config.optimization.HasField(memory):
            getattr(config.optimization, memory).enable = True
    if config.HasField("dynamic_batching") and config.max_batch_size:
        batching = config.dynamic_batching
        if not batching.preferred_batch_size:
            batching.preferred_batch_size.append(config.max_batch_size)
    if not config.instance_group:
        config.instance_group.add(name=model)
    num_groups = len(config.instance_group)
    kinds = pb.ModelInstanceGroup
    for position, group in enumerate(config.instance_group):
        group.name = group.name or f"{model}_{position}"
        group.count = group.count or (options.instances if num_groups == 1 else 1)
        group.kind = kinds.KIND_CPU if options.provider == "cpu" else kinds.KIND_GPU
        if options.provider == "cuda" and not group.gpus:
            group.gpus.extend(options.device_ids)

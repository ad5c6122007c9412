"""What several processes have done with the same versions, as if one had."""

from collections.abc import Iterable

from google.protobuf.message import Message

from servery.inference.v1 import grpc_service_pb2 as pb


def summed(parts: Iterable[pb.ModelStatisticsResponse]) -> pb.ModelStatisticsResponse:
    """Add up the statistics of processes that serve the same versions, in their order."""
    found: dict[tuple[str, str], pb.ModelStatistics] = {}
    for part in parts:
        for each in part.model_stats:
            key = each.name, each.version
            if key in found:
                _add(found[key], each)
            else:
                found[key] = each
    return pb.ModelStatisticsResponse(model_stats=list(found.values()))


def _add(total: pb.ModelStatistics, part: pb.ModelStatistics) -> None:
    total.last_inference = max(total.last_inference, part.last_inference)
    total.inference_count += part.inference_count
    total.execution_count += part.execution_count
    _add_fields(total.inference_stats, part.inference_stats)
    batches = {batch.batch_size: batch for batch in total.batch_stats}
    for batch in part.batch_stats:
        if batch.batch_size not in batches:
            total.batch_stats.append(batch)
            continue
        for name in ("compute_input", "compute_infer", "compute_output"):
            _add_fields(getattr(batches[batch.batch_size], name), getattr(batch, name))
    total.batch_stats.sort(key=lambda batch: batch.batch_size)
    memory = {(usage.type, usage.id): usage for usage in total.memory_usage}
    for usage in part.memory_usage:
        if (usage.type, usage.id) in memory:
            memory[usage.type, usage.id].byte_size += usage.byte_size
        else:
            total.memory_usage.append(usage)


def _add_fields(total: Message, part: Message) -> None:
    """Add every number of `part`, at any depth."""
    for field, value in part.ListFields():
        if isinstance(value, Message):
            _add_fields(getattr(total, field.name), value)
        else:
            setattr(total, field.name, getattr(total, field.name) + value)

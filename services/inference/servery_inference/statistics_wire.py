"""`ModelStatistics` of the contract: which versions a request means, and their counters."""

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.repository import Repository
from servery_inference.request import shown
from servery_inference.servable import Servable
from servery_inference.statistics import Duration
from servery_inference.version_text import parse_version
from servery_rpc.errors import FieldInvalidError


class StatisticsUnavailableError(FieldInvalidError):
    """There are no statistics of what a request names; clients expect no NOT_FOUND here."""

    def __init__(self, field: str, value: str, message: str) -> None:
        super().__init__(field, value, "name a model version that is loaded")
        self.args = (message,)


def statistics_of(repository: Repository, model: str, version: str) -> list[Servable]:
    """Return the loaded versions that a request means: all if it names none.

    Raises:
        StatisticsUnavailableError: There is none.
        InferenceRequestInvalidError: `version` is no integer above 0.
    """
    loaded = repository.servables()
    if not model:
        return loaded
    number = parse_version(version, model)
    found = [servable for servable in loaded if servable.model == model]
    if not found:
        raise StatisticsUnavailableError(
            "name", model, f"requested model '{shown(model)}' is not available"
        )
    matching = [servable for servable in found if number in (None, servable.version)]
    if not matching:
        raise StatisticsUnavailableError(
            "version",
            version,
            f"requested model version is not available for model '{shown(model)}'",
        )
    return matching


def to_proto(servable: Servable) -> pb.ModelStatistics:
    """Render the counters of one version."""
    counted = servable.statistics
    return pb.ModelStatistics(
        name=servable.model,
        version=str(servable.version),
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(counted.fail),
            queue=_duration(counted.queue),
            compute_input=_duration(counted.compute_input),
            compute_infer=_duration(counted.compute_infer),
            compute_output=_duration(counted.compute_output),
            cache_hit=_duration(counted.cache_hit),
            cache_miss=_duration(counted.cache_miss),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for rows, batch in sorted(counted.batches.items())
        ],
        memory_usage=[
            pb.MemoryUsage(type=kind, id=index, byte_size=num_bytes)
            for (kind, index), num_bytes in sorted(counted.memory_bytes.items())
        ],
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)

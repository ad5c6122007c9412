"""From the files of a version to graphs that are proven and warm. All of it blocks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference import golden
from servery_inference.batch_policy import BatchPolicy
from servery_inference.bundle import Bundle
from servery_inference.classification import read_labels
from servery_inference.engine import Engine, LoadFailedError, RunFailedError
from servery_inference.golden import Golden
from servery_inference.graph_cache import GraphCache
from servery_inference.model_completion import resolve
from servery_inference.model_config import GivenConfig, offered
from servery_inference.options import EngineSettings, ModelOptions
from servery_inference.row_wise import mixing
from servery_inference.sequence_plan import SequencePlan
from servery_inference.sessions import open_engine
from servery_inference.warmup import Warmth, batch_sizes, run_samples, warm_up

UNKNOWN_ROWS: Final = (1, 2, 8)
"""Sizes of the first axis to try where it is free and yet no batch."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a servable is made of."""

    engine: Engine
    config: ModelConfig
    labels: Mapping[str, Sequence[str]]
    policy: BatchPolicy

    sequences: SequencePlan | None
    """None for a model without sequences."""

    warmth: Warmth


def prepare(
    model: str,
    bundle: Bundle,
    options: ModelOptions,
    settings: EngineSettings,
    graphs: GraphCache | None,
) -> Prepared:
    """Load a version, prove it on its golden rows, and warm it.

    Args:
        model: Name on the wire.
        bundle: Its files.
        options: How it runs.
        settings: How sessions run whose config does not say otherwise.
        graphs: Keeps what was found out about graphs; None to keep nothing.

    Raises:
        LoadFailedError: It must not answer requests.
    """
    engine = open_engine(bundle.graph, options, graphs)
    rows = bundle.folder / golden.FILE
    proof = Golden.read(rows) if rows.exists() else None
    if proof is not None:
        proof.check(engine)
    elif bundle.golden_required:
        raise LoadFailedError(f"the bundle has no {golden.FILE}")
    config = _resolved(model, bundle.config, engine, options, settings, proof)
    policy, sequences = BatchPolicy.of(config), None
    if config.HasField("sequence_batching"):
        sequences = SequencePlan.of(config, engine.signature, bundle.folder.parent)
    run_samples(engine, config, bundle.folder.parent)
    warmth = _warm(engine, config, proof, bundle.config.names_max_batch_size)
    labels = read_labels(config, (bundle.folder.parent, bundle.folder))
    offering = engine.offering(offered(config))
    return Prepared(offering, config, labels, policy, sequences, warmth)


def _resolved(
    model: str,
    given: GivenConfig,
    engine: Engine,
    options: ModelOptions,
    settings: EngineSettings,
    proof: Golden | None,
) -> ModelConfig:
    """Complete a config; let requests share runs without being told to only where that is right."""
    config = resolve(model, given, engine.signature, options, settings.auto_max_batch_size)
    if config.HasField("dynamic_batching") and not given.message.HasField("dynamic_batching"):
        problem = mixing(engine, proof)
        if problem:
            log.warning(
                "model %s does not batch: %s; write max_batch_size to its config.pbtxt if it"
                " shall all the same",
                model,
                problem,
            )
            return resolve(model, given, engine.signature, options, auto_max_batch_size=0)
    return config


def _warm(
    engine: Engine,
    config: ModelConfig,
    proof: Golden | None,
    is_chosen: bool,  # noqa: FBT001
) -> Warmth:
    can_batch = engine.signature.is_batched
    if config.max_batch_size:
        preferred = tuple(config.dynamic_batching.preferred_batch_size)
        sizes = batch_sizes(config.max_batch_size, preferred)
    else:
        sizes = list(UNKNOWN_ROWS) if can_batch else [1]
    rows = proof.rows if proof and can_batch else None
    try:
        return warm_up(engine, rows, sizes, all_sizes=is_chosen)
    except RunFailedError as error:
        if proof is not None:
            raise LoadFailedError(f"it cannot be warmed up: {error}") from None
        # Zeros are no real input: what refuses them may still be a good model.
        log.warning("not warmed up, zeros are refused: %s", error)
        return Warmth(0)

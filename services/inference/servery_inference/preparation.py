"""From the files of a version to graphs that are proven and warm. All of it blocks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference import golden
from servery_inference.batch_policy import BatchPolicy
from servery_inference.bundle import Bundle
from servery_inference.classification import read_labels
from servery_inference.engine import Engine, LoadFailedError, RunFailedError
from servery_inference.explanation import FILE as EXPLANATION
from servery_inference.explanation import announce, blamed, explaining
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

    file: str
    """Name of the graph in the folder of its version."""

    engine: Engine
    config: ModelConfig
    labels: Mapping[str, Sequence[str]]
    policy: BatchPolicy

    sequences: SequencePlan | None
    """None for a model without sequences."""

    warmth: Warmth

    explanation: "Prepared | None" = None
    """What explains its answers, if the version has that."""


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
    proof = _proof(bundle)
    if proof is not None:
        proof.check(engine)
    config = _resolved(model, bundle.config, engine, options, settings, proof)
    policy, sequences = BatchPolicy.of(config), None
    if config.HasField("sequence_batching"):
        sequences = SequencePlan.of(config, engine.signature, bundle.folder.parent)
    run_samples(engine, config, bundle.folder.parent)
    warmth = _warm(engine, config, proof, all_sizes=bundle.config.names_max_batch_size)
    labels = read_labels(config, (bundle.folder.parent, bundle.folder))
    offering = engine.offering(offered(config))
    answering = Prepared(bundle.graph.name, offering, config, labels, policy, sequences, warmth)
    if bundle.explanation is None:
        return answering
    with blamed():
        graph = open_engine(bundle.explanation, options, graphs)
        explanation = _explanation(bundle, graph, answering, options, proof)
    announce(explanation.config, config)
    return replace(answering, explanation=explanation)


def _proof(bundle: Bundle) -> Golden | None:
    rows = bundle.folder / golden.FILE
    if not rows.exists():
        if bundle.golden_required:
            raise LoadFailedError(f"the bundle has no {golden.FILE}")
        return None
    proof = Golden.read(rows)
    if proof.explanations and bundle.explanation is None:
        raise LoadFailedError(f"{golden.FILE} has explanations, but there is no {EXPLANATION}")
    return proof


def _explanation(
    bundle: Bundle, engine: Engine, model: Prepared, options: ModelOptions, proof: Golden | None
) -> Prepared:
    """Prove and warm the graph that explains the answers of `model`."""
    config = explaining(model.config, model.engine.signature, engine.signature, options)
    if proof is not None:
        proof.check_explanation(engine)
    is_guessed = not bundle.config.message.HasField("dynamic_batching")
    if config.HasField("dynamic_batching") and is_guessed and (problem := mixing(engine, proof)):
        log.warning("explanations of model %s are not batched: %s", config.name, problem)
        config.ClearField("dynamic_batching")
    run_samples(engine, config, bundle.folder.parent)
    # The sizes were chosen for answers; explanations take many times as long.
    warmth = _warm(engine, config, proof, all_sizes=False)
    return Prepared(EXPLANATION, engine, config, {}, BatchPolicy.of(config), None, warmth)


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


def _warm(engine: Engine, config: ModelConfig, proof: Golden | None, *, all_sizes: bool) -> Warmth:
    can_batch = engine.signature.is_batched
    if config.max_batch_size:
        preferred = tuple(config.dynamic_batching.preferred_batch_size)
        sizes = batch_sizes(config.max_batch_size, preferred)
    else:
        sizes = list(UNKNOWN_ROWS) if can_batch else [1]
    rows = proof.rows if proof and can_batch else None
    try:
        return warm_up(engine, rows, sizes, all_sizes=all_sizes)
    except RunFailedError as error:
        if proof is not None:
            raise LoadFailedError(f"it cannot be warmed up: {error}") from None
        # Zeros are no real input: what refuses them may still be a good model.
        log.warning("not warmed up, zeros are refused: %s", error)
        return Warmth(0)

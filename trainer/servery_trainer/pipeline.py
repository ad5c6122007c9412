"""The steps of a job, from a stored file to a proven bundle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2
from servery_trainer import (
    bundle,
    completeness,
    custom_module,
    ensembles,
    export,
    frameworks,
    parity,
    plots,
    problems,
    training,
    transfer,
)
from servery_trainer.canonical import canonical
from servery_trainer.checkpoints import CheckpointStore, digest
from servery_trainer.cleaning import count_clipped, count_imputed
from servery_trainer.data_report import data_report
from servery_trainer.examples import Examples, load_examples
from servery_trainer.explanation import permutation_importance
from servery_trainer.fitting import fit_preprocessing, vocabulary_size
from servery_trainer.frameworks import Framework, Network
from servery_trainer.heads import Calibrated
from servery_trainer.networks import Custom
from servery_trainer.objectives import ForecastError, Objective
from servery_trainer.preprocessing import Preprocessing
from servery_trainer.quantization import CALIBRATION_ROWS
from servery_trainer.slices import by_slice
from servery_trainer.spec import Spec
from servery_trainer.split import Split
from servery_trainer.tasks import TabularTask
from servery_trainer.transfer import Base, open_base
from servery_trainer.variants import Proof, Variant, optimize

_PARITY_ROWS: Final = 1024
_CHECKPOINT_FORMAT: Final = 2
"""Counted up whenever `training` keeps other things in a checkpoint."""


def run(
    spec: Spec,
    dataset: Path,
    out: Path,
    threads: int,
    report: training.Report,
    checkpoints: Path | None = None,
    base_files: Path | None = None,
) -> training_pb2.TrainingResult:
    """Do all of a job but publishing.

    Args:
        spec: What to do.
        dataset: The file of `spec.dataset`.
        out: Directory to write the bundle to.
        threads: Threads of the framework and of ONNX Runtime, at least 1.
        report: Called at each phase and after each step; what it raises ends the job.
        checkpoints: Directory to go on from, and to keep how far training came in.
        base_files: Directory with the files of `spec.base_version`, if there is one.

    Returns:
        What came out, without the version.

    Raises:
        ServeryError: The job failed for a reason its creator can act on.
    """
    framework = frameworks.load(spec.framework)
    framework.configure(threads)
    libraries = bundle.libraries(framework.libraries())

    report(_phase(training_pb2.PHASE_PREPARING, spec))
    findings_of_data = data_report(spec, dataset)  # first: it holds the table in memory, too
    examples = load_examples(spec, dataset)
    target = examples.target
    split = examples.split
    head, objective = problems.pose(target, split.train, spec.training)
    base = open_base(spec, base_files, examples, head.outputs) if base_files else None
    if base:
        preprocessing, objective = base.preprocessing, base.rescaled(objective)
    else:
        preprocessing = fit_preprocessing(spec, examples.types, examples.take(split.train))

    report(_phase(training_pb2.PHASE_TRAINING, spec))
    fingerprint = _fingerprint(spec, libraries, threads)
    networks, histories = [], []
    for number in range(len(spec.networks)):
        store = CheckpointStore(checkpoints, fingerprint, number) if checkpoints else None
        network, history = _fit(
            framework, spec, number, examples, preprocessing, objective, base, report, store
        )
        networks.append(network)
        histories.append(history)
    epochs = histories[0]
    weights_sha256 = digest([array for network in networks for array in network.get_weights()])

    report(_phase(training_pb2.PHASE_CONVERTING, spec))
    weights = ensembles.fit_weights(framework, spec, networks, examples, preprocessing, objective)
    answering = framework.answering(networks, objective, weights)
    if isinstance(head, Calibrated):
        known = export.predict(answering, preprocessing, examples.take(split.validation))
        head = head.calibrated(known)
    model = canonical(export.to_onnx(answering, preprocessing, head))
    graph = parity.Graph(model, threads)
    held_out = np.concatenate([split.test, split.validation])[:_PARITY_ROWS]
    answers = export.predict(answering, preprocessing, examples.take(held_out))
    proven = parity.check_parity(
        graph,
        examples.take(held_out),
        head.decode(answers),
        max(parity.TOLERANCES[type(family)] for family in spec.networks),
    )

    report(_phase(training_pb2.PHASE_EVALUATING, spec))
    test, truth = examples.take(split.test), target.values[split.test]
    shown = bundle.pick_golden(head.clearness_B(answers), target.strata_B[held_out])
    golden, expected = examples.take(held_out[shown]), head.decode(answers[shown])
    variants, unmeasured = optimize(
        model,
        examples.take(split.train[:CALIBRATION_ROWS]),
        Proof(head, golden, expected, test, truth, proven.tolerance),
        spec.optimization,
        threads,
    )
    (chosen,) = (variant for variant in variants if variant.chosen)
    outputs = chosen.graph.predict(test)
    findings = head.evaluate(outputs, truth)
    aside = {name: texts_B[split.test] for name, texts_B in examples.aside.items()}
    slices = by_slice(head, outputs, truth, aside)
    importances = permutation_importance(chosen.graph, head, test, truth)
    explained = completeness.explained(model, preprocessing, head, test, spec.explanation, threads)

    if isinstance(spec.family, Custom):
        custom_module.require_empty(out)
    bundle.write(
        out,
        chosen.model,
        bundle.golden(golden, expected, chosen.tolerance, explained.run(golden)),
        {
            "signature.json": bundle.signature(
                spec.task.name, examples.inputs, head.outputs, explained.outputs
            ),
            "metrics.json": bundle.metrics(
                findings, len(truth), slices, proven, importances, explained.findings
            ),
            "profile.json": bundle.profile(variants, unmeasured, threads),
            "statistics.json": bundle.statistics(examples, split.train),
            "lineage.json": _lineage(spec, examples, preprocessing, weights_sha256, libraries)
            | (base.lineage() if base else {})
            | (spec.family.lineage() if isinstance(spec.family, Custom) else {})
            | ensembles.lineage(spec, histories, weights)
            | {"findings": findings_of_data},
        },
        {
            "curves.png": plots.curves(epochs, objective.figure),
            **findings.pictures,
            **transfer.files(networks, preprocessing, objective),
            **explained.files(),
        },
    )
    result = training_pb2.TrainingResult(
        parity=training_pb2.Parity(
            row_count=proven.row_count,
            max_relative_error=proven.max_relative_error,
            label_agreement=proven.label_agreement,
            tolerance=proven.tolerance,
        ),
        rows=_row_counts(examples, split),
        epochs=epochs,
        latencies=_latencies(chosen),
        variants=[
            *map(_variant, variants),
            *(training_pb2.Variant(name=one.name, refusal=one.refusal) for one in unmeasured),
        ],
        importances=[
            training_pb2.Importance(
                input=importance.input,
                accuracy_drop=importance.score_drop,
                deviation=importance.deviation,
            )
            for importance in importances
        ],
        weights_sha256=weights_sha256,
    )
    result.MergeFrom(findings.result)
    result.score = head.score
    result.slices.extend(slices)
    result.MergeFrom(training_pb2.TrainingResult(explained=explained.findings))
    return result


def _fit(
    framework: Framework,
    spec: Spec,
    number: int,
    examples: Examples,
    preprocessing: Preprocessing,
    objective: Objective,
    base: Base | None,
    report: training.Report,
    store: CheckpointStore | None,
) -> tuple[Network, list[training_pb2.Epoch]]:
    """Build and fit one network; those of an ensemble differ in their seeds or families."""
    settings = replace(spec.training, seed=(spec.training.seed + number) % 2**32)
    family = spec.networks[number]
    network = framework.build(
        family,
        preprocessing.feature_shape,
        examples.target.width,
        vocabulary_size(preprocessing),
        settings.seed,
    )
    if isinstance(objective, ForecastError) and not isinstance(family, Custom):
        _say_nothing(framework, network)
    if base:
        base.start(framework, network, number)
    train, validation = (
        training.Part(examples, rows, preprocessing)
        for rows in (examples.split.train, examples.split.validation)
    )

    def tell(progress: training_pb2.Progress) -> None:
        if len(spec.networks) > 1:
            progress.network = number + 1
        report(progress)

    epochs = training.fit(framework, network, objective, train, validation, settings, tell, store)
    return network, epochs


def _say_nothing(framework: Framework, network: Network) -> None:
    """Let a network begin with outputs of 0, so that its first forecasts are the linear ones."""
    last = framework.last_layer(network)
    network.set_weights(
        [array * (place not in last) for place, array in enumerate(network.get_weights())]
    )


def _variant(variant: Variant) -> training_pb2.Variant:
    lower, upper = variant.score_drop_interval
    return training_pb2.Variant(
        name=variant.name,
        chosen=variant.chosen,
        refusal=variant.refusal,
        size_bytes=variant.size_bytes,
        latencies=_latencies(variant),
        accuracy=variant.score,
        accuracy_drop=variant.score_drop,
        accuracy_drop_interval=training_pb2.Interval(lower=lower, upper=upper),
    )


def _latencies(variant: Variant) -> list[training_pb2.Latency]:
    return [
        training_pb2.Latency(batch_size=latency.batch_size, median_us=latency.median_us)
        for latency in variant.latencies
    ]


def _phase(phase: training_pb2.Phase.ValueType, spec: Spec) -> training_pb2.Progress:
    return training_pb2.Progress(phase=phase, max_epochs=spec.training.max_epochs)


def _row_counts(examples: Examples, split: Split) -> training_pb2.RowCounts:
    return training_pb2.RowCounts(
        total=examples.total,
        dropped_missing=examples.dropped_missing,
        dropped_duplicates=examples.dropped_duplicates,
        train=len(split.train),
        validation=len(split.validation),
        test=len(split.test),
    )


def _lineage(
    spec: Spec,
    examples: Examples,
    preprocessing: Preprocessing,
    weights_sha256: str,
    libraries: Mapping[str, str],
) -> Any:
    tabular, split = isinstance(spec.task, TabularTask), examples.split
    return {
        "dataset": str(spec.dataset),
        "spec": bundle.as_json(spec.to_proto()),
        "seed": spec.training.seed,
        "weights_sha256": weights_sha256,
        "rows": {
            "total": examples.total,
            "dropped_missing": examples.dropped_missing,
            "dropped_duplicates": examples.dropped_duplicates,
            "kept_duplicates": examples.kept_duplicates,
        },
        "values": {
            "imputed": count_imputed(examples.inputs) if tabular else {},
            "clipped": count_clipped(preprocessing, examples.inputs),
        },
        "split": {
            name: {"row_count": len(rows), "sha256": _digest(examples.row_numbers_B[rows])}
            for name, rows in (
                ("train", split.train),
                ("validation", split.validation),
                ("test", split.test),
            )
        },
        "libraries": libraries,
    }


def _fingerprint(spec: Spec, libraries: Mapping[str, str], threads: int) -> str:
    """Identify everything that decides the weights; the dataset's name holds its digest."""
    decisive = [_CHECKPOINT_FORMAT, json_format.MessageToDict(spec.to_proto()), libraries, threads]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _digest(row_numbers_B: NDArray[np.int64]) -> str:
    """Return the SHA-256 of row numbers, as little-endian 64-bit integers."""
    return hashlib.sha256(row_numbers_B.astype("<i8").tobytes()).hexdigest()

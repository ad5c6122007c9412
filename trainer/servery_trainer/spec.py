"""What a training job is to do, parsed: every value in its range, every default filled in."""

import re
from dataclasses import dataclass, replace
from typing import Final

from servery.trainer.v1 import training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import ALIAS, AliasName, DatasetName, ModelName, VersionName
from servery_trainer.aims import Goal
from servery_trainer.fields import known
from servery_trainer.hyperparameters import (
    BATCH_SIZE,
    MAX_NETWORKS,
    Explaining,
    Optimization,
    Training,
)
from servery_trainer.networks import Custom, Dense, Family, parse_family
from servery_trainer.recommendation_task import RecommendationTask
from servery_trainer.sequence_tasks import ForecastTask, SequenceTask
from servery_trainer.split import SplitPolicy
from servery_trainer.tasks import ImageTask, TabularTask, Task, TextTask, has_classes, parse_task

ROOT: Final = "training_job.spec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Everything that decides what a job makes. Two equal specs on one machine train alike."""

    dataset: DatasetName
    task: Task
    family: Family
    members: tuple[Family, ...] = ()
    """Further families of an ensemble."""
    split: SplitPolicy
    training: Training
    optimization: Optimization
    model: ModelName
    alias: AliasName | None
    framework: training_pb2.Framework.ValueType = training_pb2.FRAMEWORK_KERAS
    base_version: VersionName | AliasName | None = None
    """Where to start from; of a job that was created a version."""
    explanation: Explaining

    @property
    def networks(self) -> tuple[Family, ...]:
        """Return the family of each network to train, in their order."""
        return (self.family, *self.members) * self.training.ensemble_size

    def to_proto(self) -> training_pb2.TrainingSpec:
        """Render it with every default written out; `parse_spec` gives an equal spec back."""
        spec = training_pb2.TrainingSpec(
            dataset=str(self.dataset),
            split=self.split.to_proto(),
            training=self.training.to_proto(),
            optimization=self.optimization.to_proto(),
            publication=training_pb2.Publication(
                model=str(self.model), alias=self.alias.alias if self.alias else ""
            ),
            framework=self.framework,
            base_version=str(self.base_version or ""),
            explanation=self.explanation.to_proto(),
        )
        getattr(spec, self.task.name).CopyFrom(self.task.to_proto())
        getattr(spec, self.family.name).CopyFrom(self.family.to_proto())
        for family in self.members:
            member = spec.training.members.add()
            getattr(member, family.name).CopyFrom(family.to_proto())
        return spec


def parse_spec(spec: training_pb2.TrainingSpec) -> Spec:
    """Parse what a caller asks for.

    Raises:
        FieldInvalidError: A field is malformed or out of its range, or the family does not fit the
            task.
    """
    dataset = DatasetName.parse(spec.dataset, f"{ROOT}.dataset")
    task = parse_task(spec, ROOT)
    model, alias = _publication(spec.publication)
    split = SplitPolicy.parse(spec.split, f"{ROOT}.split")
    if split.column and isinstance(task, ImageTask | SequenceTask | ForecastTask):
        rule = "be empty: images and sequences have no columns, time series their own times"
        raise FieldInvalidError(f"{ROOT}.split.column", split.column, rule)
    batch_size = task.batch_size if isinstance(task, RecommendationTask) else BATCH_SIZE
    training = Training.parse(spec.training, f"{ROOT}.training", batch_size)
    balanced = training.class_weights == training_pb2.CLASS_WEIGHTS_BALANCED
    if balanced and not has_classes(task):
        rule = f"be EQUAL: {task.name} knows no classes"
        raise FieldInvalidError(f"{ROOT}.training.class_weights", "BALANCED", rule)
    if isinstance(task, RecommendationTask) and replace(split, seed=None) != SplitPolicy():
        rule = "say nothing but the seed: of each user the last two interactions are held out"
        raise FieldInvalidError(f"{ROOT}.split", split.column, rule)
    if isinstance(task, RecommendationTask) and spec.base_version:
        rule = "be empty: what is recommended follows from who took what, so train it anew"
        raise FieldInvalidError(f"{ROOT}.base_version", spec.base_version, rule)
    family = parse_family(spec, task, ROOT)
    members = tuple(
        parse_family(member, task, f"{ROOT}.training.members[{index}]")
        for index, member in enumerate(spec.training.members)
    )
    _check_ensemble(task, family, members, training)
    framework = _framework(spec, family)
    half = training.precision == training_pb2.PRECISION_MIXED_FLOAT16
    if half and framework != training_pb2.FRAMEWORK_KERAS:
        rule = "be PRECISION_FLOAT32, or the framework be FRAMEWORK_KERAS"
        raise FieldInvalidError(f"{ROOT}.training.precision", "PRECISION_MIXED_FLOAT16", rule)
    return Spec(
        dataset=dataset,
        task=task,
        family=family,
        members=members,
        split=split,
        training=training,
        optimization=Optimization.parse(spec.optimization, f"{ROOT}.optimization"),
        model=model,
        alias=alias,
        framework=framework,
        base_version=_base_version(spec.base_version),
        explanation=Explaining.parse(
            spec.explanation,
            f"{ROOT}.explanation",
            possible=not isinstance(task, RecommendationTask),
        ),
    )


def _framework(spec: training_pb2.TrainingSpec, family: Family) -> training_pb2.Framework.ValueType:
    field = f"{ROOT}.framework"
    framework = training_pb2.Framework.ValueType(
        known(spec.framework, training_pb2.Framework, field)
    )
    if isinstance(family, Custom) and framework != training_pb2.FRAMEWORK_KERAS:
        rule = "be FRAMEWORK_KERAS: a custom family builds a network of Keras"
        raise FieldInvalidError(field, training_pb2.Framework.Name(framework), rule)
    return framework


def _base_version(text: str) -> VersionName | AliasName | None:
    if not text:
        return None
    kind = AliasName if "/aliases/" in text else VersionName
    return kind.parse(text, f"{ROOT}.base_version")


def _check_ensemble(
    task: Task, family: Family, members: tuple[Family, ...], training: Training
) -> None:
    """Refuse networks that have no common answer."""
    path = f"{ROOT}.training"
    count = (1 + len(members)) * training.ensemble_size
    if count > MAX_NETWORKS:
        rule = f"hold fewer: these are {count} networks, the limit is {MAX_NETWORKS}"
        raise FieldInvalidError(f"{path}.members", len(members), rule)
    for index, member in enumerate(members):
        if isinstance(task, TextTask) and isinstance(member, Dense) != isinstance(family, Dense):
            rule = f"see texts as {family.name} does: dense networks see them differently"
            raise FieldInvalidError(f"{path}.members[{index}]", member.name, rule)
    if training.combination != training_pb2.COMBINATION_STACKED:
        return
    finds_anomalies = isinstance(task, TabularTask) and task.aim.goal is Goal.ANOMALY
    if finds_anomalies or isinstance(task, RecommendationTask):
        rule = f"be MEAN: {task.name} knows no right answers to fit weights to"
        raise FieldInvalidError(f"{path}.combination", "COMBINATION_STACKED", rule)
    if count == 1:
        rule = "be MEAN, or there be more than one network: add members"
        raise FieldInvalidError(f"{path}.combination", "COMBINATION_STACKED", rule)


def _publication(publication: training_pb2.Publication) -> tuple[ModelName, AliasName | None]:
    path = f"{ROOT}.publication"
    model = ModelName.parse(publication.model, f"{path}.model")
    if not publication.alias:
        return model, None
    if not re.fullmatch(ALIAS, publication.alias):
        raise FieldInvalidError(f"{path}.alias", publication.alias, f"match {ALIAS}")
    return model, AliasName(model, publication.alias)

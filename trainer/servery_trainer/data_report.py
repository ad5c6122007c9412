"""What validation says of the rows of a table that a job learns from, for its lineage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from servery.trainer.v1 import dataset_pb2
from servery_trainer import bundle, sources
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.spec import Spec
from servery_trainer.tasks import TabularTask, TextTask
from servery_trainer.validation import Validation, validate


def data_report(spec: Spec, path: Path) -> list[dict[str, Any]]:
    """Return what `ValidateDataset` would find, the worst first.

    Nothing for other tasks than those of tables and texts, and for data that `load_examples`
    refuses: its error says more.
    """
    if not isinstance(spec.task, TabularTask | TextTask):
        return []
    try:
        report = validate(_question(spec, spec.task, path), dataset_pb2.DATASET_FORMAT_CSV, path)
    except DatasetInvalidError:
        return []
    return [bundle.as_json(finding) for finding in report.findings]


def _question(spec: Spec, task: TabularTask | TextTask, path: Path) -> Validation:
    taught = task.aim.columns
    features: tuple[str, ...]
    if isinstance(task, TextTask):
        features, types = (task.text,), {task.text: dataset_pb2.COLUMN_TYPE_TEXT}
    else:
        apart = {*taught, spec.split.column}
        header = sources.read_header(path)
        features = task.features or tuple(name for name in header if name not in apart)
        types = dict(task.column_types)
    seed = spec.training.seed if spec.split.seed is None else spec.split.seed
    return Validation(
        name=spec.dataset,
        target=taught[0] if len(taught) == 1 else "",
        features=features,
        column_types=types,
        ranges={},
        split=replace(spec.split, seed=seed),
    )

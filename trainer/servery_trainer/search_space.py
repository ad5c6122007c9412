"""Which hyperparameters a study varies: paths into a `TrainingSpec`, and the values to look among.

Everything that cannot work is refused when the study is created, but for values that only together
are none a job takes: they make their trial fail before it trains.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from servery.trainer.v1 import training_pb2, tuning_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.spec import ROOT, parse_spec

MAX_PARAMETERS: Final = 32
MAX_CHOICES: Final = 100

_WHOLE: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
_REAL: Final = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from `low` to `high`."""

    low: int
    high: int
    log: bool

    def ends(self) -> tuple[int, ...]:
        """Return the values to try out."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Real:
    """Numbers from `low` to `high`."""

    low: float
    high: float
    log: bool

    def ends(self) -> tuple[float, ...]:
        """Return the values to try out."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Choice:
    """Some values, each as JSON."""

    texts: tuple[str, ...]

    def ends(self) -> tuple[Any, ...]:
        """Return the values to try out."""
        return tuple(json.loads(text) for text in self.texts)


Domain = Whole | Real | Choice

_FIXED: Final = frozenset(
    {"dataset", "split", "publication", "optimization", "base_version"}
    | {"training.seed", "custom.module"}
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A field that differs between trials."""

    path: str
    domain: Domain


Assignments = Mapping[str, Any]
"""A value, as JSON has it, for each path."""


def parse_space(
    parameters: Sequence[tuning_pb2.Parameter], spec: training_pb2.TrainingSpec, root: str
) -> tuple[Parameter, ...]:
    """Parse what a study varies in `spec`.

    Args:
        parameters: What its creator said.
        spec: A spec that a job takes.
        root: Path of `parameters`, to name fields by.

    Raises:
        FieldInvalidError: A path or a range is none, or an end of one no value a job takes.
    """
    if not 1 <= len(parameters) <= MAX_PARAMETERS:
        raise FieldInvalidError(root, len(parameters), f"hold 1 to {MAX_PARAMETERS} parameters")
    parsed: list[Parameter] = []
    for index, parameter in enumerate(parameters):
        at = f"{root}[{index}]"
        if any(parameter.path == other.path for other in parsed):
            raise FieldInvalidError(f"{at}.path", parameter.path, "be named once")
        field = _field(parameter.path, spec, f"{at}.path")
        parsed.append(Parameter(parameter.path, _domain(parameter, field, at)))
        for value in parsed[-1].domain.ends():
            _try(spec, parameter.path, value, at)
    return tuple(parsed)


def assigned(spec: training_pb2.TrainingSpec, values: Assignments) -> training_pb2.TrainingSpec:
    """Return `spec` with other values of some fields.

    Raises:
        json_format.ParseError: A value is not of the type of its field.
    """
    changed = training_pb2.TrainingSpec()
    changed.CopyFrom(spec)
    for path, value in values.items():
        *parents, name = path.split(".")
        message: Any = changed
        for parent in parents:
            message = getattr(message, parent)
            message.SetInParent()
        message.ClearField(name)
        json_format.ParseDict({name: value}, message)
    return changed


def _field(path: str, spec: training_pb2.TrainingSpec, at: str) -> FieldDescriptor:
    """Return the field at `path`, if trials may differ in it."""
    descriptor = spec.DESCRIPTOR
    *parents, name = path.split(".")
    for parent in parents:
        field = descriptor.fields_by_name.get(parent)
        if field is None or field.message_type is None or field.is_repeated:
            raise FieldInvalidError(at, path, _rule(descriptor.fields_by_name))
        descriptor = field.message_type
    field = descriptor.fields_by_name.get(name)
    if field is None or field.message_type is not None:
        raise FieldInvalidError(at, path, _rule(descriptor.fields_by_name))
    first = path.partition(".")[0]
    if first in _FIXED or path in _FIXED:
        raise FieldInvalidError(at, path, "be left alone: it does not make a model better")
    group = spec.DESCRIPTOR.fields_by_name[first].containing_oneof
    if group is not None:
        chosen = next((one.name for one, _ in spec.ListFields() if one in group.fields), first)
        if chosen != first:
            rule = f"be a field of {chosen}, the {group.name} of the spec"
            raise FieldInvalidError(at, path, rule)
        if group.name == "task" and field.cpp_type not in _WHOLE | _REAL:
            raise FieldInvalidError(at, path, "be a number, if it belongs to the task")
    return field


def _rule(known: Iterable[str]) -> str:
    return f"name a field of TrainingSpec; there is {', '.join(known)}"


def _domain(parameter: tuning_pb2.Parameter, field: FieldDescriptor, at: str) -> Domain:
    kind = parameter.WhichOneof("values")
    if kind == "choices":
        return Choice(_texts(parameter.choices.values, f"{at}.choices.values"))
    if kind is None:
        raise FieldInvalidError(at, "", "say which values: integers, floats or choices")
    if field.is_repeated or field.cpp_type not in (_WHOLE if kind == "integers" else _REAL):
        rule = "have values of the type of the field: integers for whole numbers, floats for other"
        raise FieldInvalidError(f"{at}.{kind}", parameter.path, f"{rule} ones, else choices")
    asked = parameter.integers if kind == "integers" else parameter.floats
    if not (math.isfinite(asked.low) and math.isfinite(asked.high) and asked.low <= asked.high):
        raise FieldInvalidError(f"{at}.{kind}.high", asked.high, f"be at least low, {asked.low}")
    if asked.log and asked.low <= 0:
        raise FieldInvalidError(f"{at}.{kind}.low", asked.low, "be over 0, as log is set")
    if isinstance(asked, tuning_pb2.IntegerRange):
        return Whole(asked.low, asked.high, asked.log)
    return Real(asked.low, asked.high, asked.log)


def _texts(values: Sequence[str], at: str) -> tuple[str, ...]:
    if not 1 <= len(values) <= MAX_CHOICES:
        raise FieldInvalidError(at, len(values), f"hold 1 to {MAX_CHOICES} values")
    texts = tuple(json.dumps(_value(value)) for value in values)
    for index, text in enumerate(texts):
        if text in texts[:index]:
            raise FieldInvalidError(f"{at}[{index}]", values[index], "be named once")
    return texts


def _value(text: str) -> Any:
    """Read JSON; what is none is a name, as of an enum."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _try(spec: training_pb2.TrainingSpec, path: str, value: Any, at: str) -> None:
    """Refuse a value that no job takes."""
    try:
        parse_spec(assigned(spec, {path: value}))
    except json_format.ParseError:
        rule = f"be a value of the field {path}"
        raise FieldInvalidError(at, json.dumps(value), rule) from None
    except FieldInvalidError as error:
        field = error.metadata["field"].removeprefix(f"{ROOT}.")
        rule = f"only hold values that a job takes: {field} must {error.metadata['rule']}"
        raise FieldInvalidError(at, json.dumps(value), rule) from None

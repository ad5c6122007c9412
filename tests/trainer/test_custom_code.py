"""Modules of callers: who may have them run, and what their authors are told of their mistakes."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.custom_code import CustomCodeError, CustomCodeForbiddenError, CustomCodePolicy
from servery_trainer.custom_module import call_build
from servery_trainer.executor import Work
from servery_trainer.jobs import Outcome
from servery_trainer.local_executor import JOB_COMMAND, SANDBOX, LocalExecutor, installation
from servery_trainer.networks import Custom
from servery_trainer.resources import Resources
from servery_trainer.spec import parse_spec
from tests.trainer.service import CSV, failure, running_trainer, spec
from tests.trainer.specs import tabular
from tests.trainer.test_commands import Shell

FINE = """
import keras

def build(shape, outputs, vocabulary, units=8):
    inputs = keras.Input(shape)
    hidden = keras.layers.Dense(units, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(outputs)(hidden))
"""

needs_sandbox = pytest.mark.skipif(
    subprocess.run([*SANDBOX, "probe"], check=False, capture_output=True).returncode != 0,
    reason="the kernel has no Landlock",
)

INSIDE = """
import json, sys
from servery_trainer.custom_code import CustomCodeError
from servery_trainer.networks import Custom
{imports}
for name, module in json.load(open({modules!r})).items():
    family = Custom(module=module, parameters={{}})
    try:
        said = {call}
    except CustomCodeError as error:
        said = [error.metadata["problem"], int(error.metadata["line"]), str(error)]
    print(json.dumps([name, said]), flush=True)
"""


def shut_in(directory: Path, modules: Mapping[str, str], call: str, imports: str) -> dict[str, Any]:
    """What `call` says of the `family` of each module, all in one process that is shut in."""
    listed = directory / "modules.json"
    listed.write_text(json.dumps(modules))
    rules = {"read": [*installation(), str(listed)], "write": [str(directory)]}
    program = INSIDE.format(modules=str(listed), call=call, imports=imports)
    ended = subprocess.run(
        [*SANDBOX, json.dumps(rules), sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=directory,
        env={"HOME": str(directory), "PYTHONSAFEPATH": "1", "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    said = [line for line in ended.stdout.splitlines() if line.startswith("[")]
    assert len(said) == len(modules), ended.stderr
    return dict(map(json.loads, said))


BAD: dict[str, tuple[str, list[Any]]] = {
    "no Python": ("def build(:\n", ["RAISED", 1]),
    "no text": ("x = '\0'\n", ["RAISED", 0]),
    "deep": ("x = " + "(" * 5000 + "1" + ")" * 5000, ["RAISED", 1]),
    "no build": ("buidl = 1\n", ["NO_BUILD", 0]),
    "no function": ("build = 1\n", ["NO_BUILD", 0]),
    "fails to import": ("\nimport no_such_library\n", ["RAISED", 2]),
    "raises": ("def build(*_, **__):\n    x = 1\n    raise ValueError('no')\n", ["RAISED", 3]),
    "other arguments": ("def build(shape):\n    return shape\n", ["RAISED", 0]),
    "ends the process": ("import sys\nsys.exit(0)\n", ["RAISED", 2]),
    "is interrupted": ("raise KeyboardInterrupt\n", ["RAISED", 1]),
    "hangs": (
        "while True:\n    try:\n        pass\n    except Exception:\n        pass\n",
        ["SLOW"],
    ),
    "calls itself": ("def build(*_):\n    return build()\n", ["RAISED", 2]),
    "reads passwords": ("\nprint(open('/etc/passwd').read())\n", ["RAISED", 2]),
    "opens a socket": ("import socket\nsocket.create_server(('', 0))\n", ["RAISED", 2]),
    "forks": ("import os\nos.fork()\n", ["RAISED", 2]),
    "runs a program": ("import subprocess\nsubprocess.run('true')\n", ["RAISED", 2]),
    "cannot say what fails": (
        "class Mute(Exception):\n    def __str__(self):\n        return 1 / 0\nraise Mute\n",
        ["RAISED", 4],
    ),
    "hides what fails": (
        "try:\n    open('/etc/passwd')\nexcept OSError:\n    raise ValueError from None\n",
        ["RAISED", 4],
    ),
}


@needs_sandbox
def test_authors_are_told_what_is_wrong_and_in_which_line(tmp_path: Path) -> None:
    modules = {name: module for name, (module, _) in BAD.items()}
    call = "call_build(family, (4,), 2, 0, limit_s=0.5)"
    said = shut_in(tmp_path, modules, call, "from servery_trainer.custom_module import call_build")
    places = ("/", str(tmp_path), sys.prefix, sys.base_prefix)
    for name, (_, expected) in BAD.items():
        assert said[name][: len(expected)] == expected, (name, said[name])
        assert not any(place in said[name][2] for place in places[1:]), said[name]


WRONG: dict[str, tuple[str, Any]] = {
    "fine": (FINE, "Functional"),
    "of its own class": (
        (
            "import keras\n"
            "class Own(keras.Model):\n"
            "    def __init__(self, outputs):\n"
            "        super().__init__()\n"
            "        self.last = keras.layers.Dense(outputs)\n"
            "    def call(self, rows):\n"
            "        return self.last(rows)\n"
            "def build(shape, outputs, vocabulary):\n"
            "    return Own(outputs)\n"
        ),
        "Functional",
    ),
    "no model": ("def build(*_):\n    return 3\n", ["WRONG_RESULT", 0]),
    "other shape": (FINE.replace("Dense(outputs)", "Dense(7)"), ["WRONG_RESULT", 0]),
    "other type": (
        FINE.replace("Dense(outputs)", "Dense(outputs, dtype='float16')"),
        ["WRONG_RESULT", 0],
    ),
    "other rows": (FINE.replace("Input(shape)", "Input((9,))"), ["WRONG_RESULT", 0]),
    "two outputs": (
        FINE.replace("keras.layers.Dense(outputs)(hidden))", "[hidden, hidden])"),
        ["WRONG_RESULT", 0],
    ),
    "nothing to train": (
        (
            "import keras\n"
            "def build(shape, outputs, vocabulary):\n"
            "    inputs = keras.Input(shape)\n"
            "    return keras.Model(inputs, keras.layers.Activation('relu')(inputs[:, :2]))\n"
        ),
        ["WRONG_RESULT", 0],
    ),
    "too large": (FINE.replace("Dense(units", "Dense(40_000_000"), ["WRONG_RESULT", 0]),
    "fails when called": (
        (
            "import keras\n"
            "class Own(keras.layers.Layer):\n"
            "    def call(self, rows):\n"
            "        raise RuntimeError('too much')\n"
            "def build(shape, outputs, vocabulary):\n"
            "    return keras.Sequential([Own(), keras.layers.Dense(outputs)])\n"
        ),
        ["WRONG_RESULT", 4],
    ),
}


@needs_sandbox
@pytest.mark.slow
def test_what_is_no_network_for_the_data_is_refused(tmp_path: Path) -> None:
    modules = {name: module for name, (module, _) in WRONG.items()}
    call = "type(families.build(family, (4,), 2, 0)).__name__"
    imports = "from servery_trainer.keras_framework import families"
    said = shut_in(tmp_path, modules, call, imports)
    for name, (_, expected) in WRONG.items():
        found = said[name] if isinstance(expected, str) else said[name][: len(expected)]
        assert found == expected, (name, said[name])
        assert sys.prefix not in str(said[name])


def test_nothing_is_run_in_a_process_that_is_not_shut_in(tmp_path: Path) -> None:
    written = tmp_path / "written"
    module = f"open({str(written)!r}, 'w')\n"
    with pytest.raises(RuntimeError):
        call_build(Custom(module=module, parameters={}), (4,), 2, 0)
    assert not written.exists()


@pytest.mark.parametrize(
    ("tenants", "has_sandbox", "problem"),
    [
        pytest.param((), True, "NOT_ENABLED", id="nobody"),
        pytest.param(("acme",), True, "NOT_ENABLED", id="others"),
        pytest.param(("default",), False, "NO_SANDBOX", id="without a sandbox"),
    ],
)
def test_code_of_tenants_is_refused_unless_they_may(
    tenants: Sequence[str], has_sandbox: bool, problem: str
) -> None:
    asked = tabular()
    asked.custom.module = FINE
    policy = CustomCodePolicy(tenants, has_sandbox)
    with pytest.raises(CustomCodeForbiddenError) as refused:
        policy.require("default", asked)
    assert refused.value.metadata == {"tenant": "default", "problem": problem}
    policy.require("default", tabular())


async def test_who_is_not_named_may_not_have_code_run(
    tmp_path: Path, command: Sequence[str]
) -> None:
    async with running_trainer(tmp_path, command, custom_code_tenants=("acme",)) as client:
        dataset = await client.upload(CSV)
        asked = spec(dataset.name, "succeeds")
        asked.custom.module = FINE
        error = await failure(client.create(asked))
        assert (error.code.name, error.reason) == (
            "PERMISSION_DENIED",
            "ERROR_REASON_CUSTOM_CODE_FORBIDDEN",
        )


@pytest.mark.parametrize(
    ("field", "family"),
    [
        pytest.param("module", {}, id="no module"),
        pytest.param("module", {"module": "#" * 65_537}, id="too long a module"),
        pytest.param("parameters", {"parameters": {"shape": 1}}, id="an argument of ours"),
        pytest.param("parameters", {"parameters": {"a-b": 1}}, id="no name of an argument"),
        pytest.param("parameters", {"parameters": {"a": "x" * 16_384}}, id="too many"),
    ],
)
def test_a_family_that_is_malformed_is_refused(field: str, family: dict[str, Any]) -> None:
    message = json_format.ParseDict({"module": FINE} | family, pb.CustomFamily())
    if field == "module":
        message = json_format.ParseDict(family, pb.CustomFamily())
    with pytest.raises(FieldInvalidError) as refused:
        Custom.parse(message, "custom")
    assert refused.value.metadata["field"] == f"custom.{field}"


def test_parameters_come_back_as_they_were_given() -> None:
    given = {"units": 64, "rate": 0.5, "sizes": [1, 2.5], "kind": "a", "inner": {"on": True}}
    message = json_format.ParseDict({"module": FINE, "parameters": given}, pb.CustomFamily())
    family = Custom.parse(message, "custom")
    assert family.parameters == given
    assert Custom.parse(family.to_proto(), "custom") == family


async def run(directory: Path, module: str) -> tuple[Outcome, str]:
    """How a job with this module ends, and its log."""
    table = directory / "data.csv"
    table.write_bytes(CSV)
    asked = tabular(features=["x", "y"])
    asked.custom.module = module
    asked.training.max_epochs = 2
    work = Work(
        "tenants/default/trainingJobs/a",
        parse_spec(asked).to_proto(),
        table,
        directory / "job",
        Resources(1, 4 * 1024**3),
    )
    async with asyncio.timeout(110):
        outcome = await LocalExecutor().run(work, lambda _: None)
    return outcome, work.log_path.read_text()


@needs_sandbox
@pytest.mark.slow
async def test_a_network_that_cannot_be_converted_is_told_by_its_operator(tmp_path: Path) -> None:
    hidden = "    hidden = keras.ops.erfinv(keras.ops.tanh(hidden) / 2)\n    return"
    error, _ = await run(tmp_path, FINE.replace("    return", hidden))
    assert isinstance(error, pb.JobError)
    assert error.metadata["problem"] == "NOT_CONVERTIBLE"
    assert "Erfinv" in error.message
    assert sys.prefix not in error.message


@needs_sandbox
@pytest.mark.slow
async def test_a_module_can_neither_speak_for_the_job_nor_write_its_version(
    tmp_path: Path,
) -> None:
    module = FINE.replace("import keras\n", "import keras, os\nfrom pathlib import Path\n").replace(
        "    return",
        "    print('{\"error\": {}}')\n    os.write(1, b'{}')\n"
        f"    Path({str(tmp_path / 'job/bundle/notes.txt')!r}).write_text('hello')\n    return",
    )
    error, log = await run(tmp_path, module)
    assert isinstance(error, pb.JobError)
    assert error.metadata == {"problem": "WROTE_FILES", "line": "0"}
    assert '{"error": {}}' in log


@needs_sandbox
async def test_a_module_that_is_no_python_fails_at_once(tmp_path: Path) -> None:
    error, _ = await run(tmp_path, "def build(:\n")
    assert isinstance(error, pb.JobError)
    assert error.metadata == {"problem": "RAISED", "line": "1"}


def test_an_error_without_a_line_says_so() -> None:
    assert str(CustomCodeError("RAISED", "no")) == "the module: no"


@needs_sandbox
@pytest.mark.slow
async def test_a_tenant_that_may_trains_its_own_network_and_goes_on_from_it(
    tmp_path_factory: pytest.TempPathFactory, registry: str
) -> None:
    directory = tmp_path_factory.mktemp("t")
    (directory / "own.py").write_text(FINE)
    (directory / "rows.csv").write_bytes(CSV)
    address = f"unix:{directory / 's'}"
    tenants = ("default",)
    async with running_trainer(
        directory / "d", JOB_COMMAND, registry, listen=address, custom_code_tenants=tenants
    ) as client:
        shell = Shell(address, client)
        train = ("train", str(directory / "rows.csv"), "--target", "kind", "--model", "own")
        own = (*train, "--module", str(directory / "own.py"), "--max-epochs", "2", "--detach")
        units = ("--set", 'custom.parameters={"units": 4}')
        asked = await shell.json(*own, *units)
        made = await client.end(asked["name"], within_s=110)
        assert made.result.version == "tenants/default/models/own/versions/1", made.error
        asked = await shell.json(*own, *units, "--from", "own@1")
        assert asked["spec"]["base_version"] == made.result.version
        on = await client.end(asked["name"], within_s=110)
        assert on.result.version == "tenants/default/models/own/versions/2", on.error

"""Processes of jobs: how they end, however they end, and that nothing of them stays."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.executor import Work
from servery_trainer.jobs import Crashed
from servery_trainer.local_executor import LocalExecutor, network_is_closed
from servery_trainer.resources import Resources
from tests.trainer.service import alive, spec, until


@pytest.fixture
def executor(command: Sequence[str]) -> LocalExecutor:
    return LocalExecutor(grace_s=0.2, command=command)


def work(directory: Path, model: str, memory_bytes: int = 0) -> Work:
    job = f"tenants/default/trainingJobs/{model}"
    given = spec(f"tenants/default/datasets/{'0' * 64}", model)
    resources = Resources(1, memory_bytes)
    return Work(job, given, directory / "data.csv", directory / "jobs" / model, resources)


class Seen(list[pb.Progress]):
    """The progress of a job, and a way to wait for its process id."""

    def __init__(self) -> None:
        self.started = asyncio.Event()

    def __call__(self, progress: pb.Progress) -> None:
        self.append(progress)
        if "pid" in progress.metrics:
            self.started.set()

    async def pid(self) -> int:
        await asyncio.wait_for(self.started.wait(), 10)
        return int(self[-1].metrics["pid"])


async def test_tells_progress_in_order_then_the_result(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    seen = Seen()
    outcome = await executor.run(work(tmp_path, "succeeds"), seen)
    assert isinstance(outcome, pb.TrainingResult)
    assert outcome.metrics["accuracy"] == 0.75
    assert outcome.version == ""  # Whatever the process says: the registry gives it.
    assert [p.phase for p in seen[:2]] == [pb.PHASE_STARTING, pb.PHASE_TRAINING]
    assert [p.epoch for p in seen] == [0, 1, 2, 3]
    assert (work(tmp_path, "succeeds").bundle / "model.onnx").exists()


async def test_keeps_what_the_process_logs(executor: LocalExecutor, tmp_path: Path) -> None:
    await executor.run(work(tmp_path, "succeeds"), Seen())
    await executor.run(work(tmp_path, "succeeds"), Seen())
    log = work(tmp_path, "succeeds").directory / "job.log"
    assert log.read_text() == "trains succeeds\n" * 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param("aborts", "SIGABRT", id="signal"),
        pytest.param("exits", "exit status 3", id="no result"),
        pytest.param("lies", "exit status 3", id="result, then a crash"),
        pytest.param("misnames", "exit status 1", id="a reason that does not exist"),
    ],
)
async def test_a_crash_is_told_in_words(
    executor: LocalExecutor, tmp_path: Path, model: str, words: str
) -> None:
    outcome = await executor.run(work(tmp_path, model), Seen())
    assert isinstance(outcome, Crashed)
    assert outcome.error.reason == reasons.ERROR_REASON_TRAINING_JOB_CRASHED
    assert outcome.error.metadata == {"exit": words}
    assert str(tmp_path) not in outcome.error.message


async def test_an_error_of_the_process_is_passed_on(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    outcome = await executor.run(work(tmp_path, "refuses"), Seen())
    assert outcome == pb.JobError(
        reason=reasons.ERROR_REASON_DATASET_INVALID,
        message="only one class",
        metadata={"problem": "ONE_CLASS"},
    )


async def test_what_is_no_message_is_passed_over(executor: LocalExecutor, tmp_path: Path) -> None:
    seen = Seen()
    assert isinstance(await executor.run(work(tmp_path, "garbles"), seen), pb.TrainingResult)
    assert [p.phase for p in seen] == [pb.PHASE_STARTING]


@pytest.mark.parametrize("model", ["hangs", "resists"])
async def test_cancelling_ends_the_process(
    executor: LocalExecutor, tmp_path: Path, model: str
) -> None:
    seen = Seen()
    run = asyncio.create_task(executor.run(work(tmp_path, model), seen))
    pid = await seen.pid()
    run.cancel()
    await asyncio.sleep(0)
    run.cancel()  # Impatience changes nothing.
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, 5)
    assert not alive(pid)


async def test_what_the_process_started_ends_with_it(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    seen = Seen()
    outcome = await asyncio.wait_for(executor.run(work(tmp_path, "leaves"), seen), 10)
    assert isinstance(outcome, pb.TrainingResult)
    pid = await seen.pid()
    await until(lambda: not alive(pid))


async def test_a_process_that_wants_too_much_memory_fails_alone(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    outcome = await executor.run(work(tmp_path, "hoards", memory_bytes=1024**3), Seen())
    assert isinstance(outcome, Crashed)
    assert outcome.error.metadata == {"exit": "exit status 1"}
    assert str(1024**3) in outcome.error.message


async def test_an_operator_may_limit_the_address_space(
    command: Sequence[str], tmp_path: Path
) -> None:
    executor = LocalExecutor(address_space_bytes=1024**3, command=command)
    assert isinstance(await executor.run(work(tmp_path, "hoards"), Seen()), Crashed)


async def test_training_gives_way_to_serving(executor: LocalExecutor, tmp_path: Path) -> None:
    seen = Seen()
    run = asyncio.create_task(executor.run(work(tmp_path, "hangs"), seen))
    assert os.getpriority(os.PRIO_PROCESS, await seen.pid()) > os.getpriority(os.PRIO_PROCESS, 0)
    run.cancel()
    await asyncio.wait([run])


async def test_a_second_attempt_finds_no_half_bundle(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    bundle = work(tmp_path, "succeeds").bundle
    bundle.mkdir(parents=True)
    (bundle / "half").touch()
    await executor.run(work(tmp_path, "succeeds"), Seen())
    assert not (bundle / "half").exists()


PARENT = """
import asyncio, sys
from pathlib import Path
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.executor import Work
from servery_trainer.local_executor import LocalExecutor
from servery_trainer.resources import Resources
directory, model, *command = sys.argv[1:]
def show(progress):
    if "pid" in progress.metrics:
        print(int(progress.metrics["pid"]), flush=True)
spec = pb.TrainingSpec(publication=pb.Publication(model=f"tenants/default/models/{model}"))
work = Work("a job", spec, Path(directory, "data.csv"), Path(directory, "job"), Resources(1, 0))
asyncio.run(LocalExecutor(command=command).run(work, show))
"""


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("resists", id="the job"),
        pytest.param("hides", id="what it started, in a session of its own"),
    ],
)
def test_nothing_outlives_a_killed_trainer(
    command: Sequence[str], tmp_path: Path, model: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), model, *command], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    asyncio.run(until(lambda: not alive(pid)))


async def test_a_job_runs_on_as_many_cpus_as_it_has_cores(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    seen = Seen()
    run = asyncio.create_task(executor.run(work(tmp_path, "hangs"), seen))
    assert len(os.sched_getaffinity(await seen.pid())) == 1
    run.cancel()
    await asyncio.wait([run])


def network(pid: int) -> int:
    """Identify the network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


@pytest.mark.skipif(not network_is_closed(), reason="the kernel permits no network namespaces")
async def test_a_job_has_no_network(executor: LocalExecutor, tmp_path: Path) -> None:
    seen = Seen()
    run = asyncio.create_task(executor.run(work(tmp_path, "hangs"), seen))
    pid = await seen.pid()
    assert network(pid) != network(os.getpid())
    run.cancel()
    await asyncio.wait([run])

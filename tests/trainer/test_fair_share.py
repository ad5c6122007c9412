"""Which job runs next."""

from collections.abc import Mapping, Sequence

import pytest

from servery_trainer.fair_share import HALF_LIFE_S, Running, Usage, Waiting, next_job
from servery_trainer.resources import Resources
from servery_trainer.terms import Capacity

NOW_S = 1e9
MACHINE = Resources(cores=4, memory_bytes=8)
CAPACITY = Capacity(MACHINE, parallel_jobs=3)


def waits(
    number: int, tenant: str = "a", priority: int = 50, cores: int = 1, for_s: float = 0
) -> Waiting:
    return Waiting(number, tenant, Resources(cores, 1), priority, NOW_S - for_s)


def runs(tenant: str = "a", cores: int = 1, memory_bytes: int = 1, for_s: float = 0) -> Running:
    return Running(tenant, Resources(cores, memory_bytes), NOW_S - for_s)


@pytest.mark.parametrize(
    ("waiting", "running", "usage", "expected"),
    [
        pytest.param([], [], {}, None, id="nobody waits"),
        pytest.param([waits(2), waits(1)], [], {}, 1, id="the oldest"),
        pytest.param([waits(1), waits(2, priority=51)], [], {}, 2, id="the most urgent"),
        pytest.param(
            [waits(1, priority=0, for_s=7000), waits(2, priority=100)], [], {}, 1, id="who waited"
        ),
        pytest.param(
            [waits(1, "a", priority=100), waits(2, "b", priority=0)],
            [runs("a")],
            {},
            2,
            id="first the tenant that runs less",
        ),
        pytest.param(
            [waits(1, "a"), waits(2, "b")],
            [],
            {"a": Usage(10, NOW_S)},
            2,
            id="or the tenant that used less",
        ),
        pytest.param(
            [waits(1, "a"), waits(2, "b")],
            [],
            {"a": Usage(10, NOW_S - 9 * HALF_LIFE_S), "b": Usage(1, NOW_S)},
            1,
            id="old use is forgotten",
        ),
        pytest.param(
            [waits(1, "a"), waits(2, "b")],
            [runs("a", cores=1), runs("b", cores=1, memory_bytes=4)],
            {},
            1,
            id="memory counts like cores, whichever is more",
        ),
        pytest.param([waits(1, cores=4)], [runs()], {}, None, id="no room"),
        pytest.param(
            [waits(1, priority=60, cores=4), waits(2)], [runs()], {}, None, id="none overtakes"
        ),
        pytest.param([waits(1)], [runs()] * 3, {}, None, id="no place"),
        pytest.param([waits(1, cores=9)], [], {}, 1, id="larger than the machine, alone"),
    ],
)
def test_next(
    waiting: Sequence[Waiting],
    running: Sequence[Running],
    usage: Mapping[str, Usage],
    expected: int | None,
) -> None:
    job = next_job(waiting, running, usage, CAPACITY, NOW_S)
    assert (job.id if job else None) == expected


def test_a_run_counts_by_the_part_of_the_machine_it_held() -> None:
    used = Usage(8, NOW_S - HALF_LIFE_S).after(runs(cores=2, for_s=30), NOW_S, MACHINE)
    assert used.machine_s == pytest.approx(4 + 15)


def test_one_greedy_tenant_leaves_every_other_place_to_the_others() -> None:
    waiting = [waits(number, "greedy", priority=100) for number in range(100)]
    waiting += [waits(number, "modest", priority=0) for number in range(100, 110)]
    usage: dict[str, Usage] = {}
    order = []
    for _ in range(20):  # One place, jobs of equal length.
        job = next_job(waiting, [], usage, CAPACITY, NOW_S)
        assert job is not None
        waiting.remove(job)
        order.append(job.tenant)
        run = runs(job.tenant, for_s=60)
        usage[job.tenant] = usage.get(job.tenant, Usage(0, 0)).after(run, NOW_S, MACHINE)
    assert order.count("modest") == 10

"""The rollout policy, as a table."""

from collections.abc import Mapping

import pytest

from servery_inference.rollout import State, Step, next_step

LOADING, READY, FAILED = State.LOADING, State.READY, State.FAILED
UNLOADING, UNLOADED = State.UNLOADING, State.UNLOADED


@pytest.mark.parametrize(
    ("target", "serving", "states", "expected"),
    [
        pytest.param(1, None, {}, Step((1,), (), {}), id="load the first"),
        pytest.param(1, None, {1: LOADING}, Step((), (), {}), id="wait for it"),
        pytest.param(1, None, {1: READY}, Step((), (), {"a": 1}), id="serve it"),
        pytest.param(2, 1, {1: READY}, Step((2,), (), {"a": 1}), id="load before unload"),
        pytest.param(2, 1, {1: READY, 2: LOADING}, Step((), (), {"a": 1}), id="serve meanwhile"),
        pytest.param(2, 1, {1: READY, 2: READY}, Step((), (1,), {"a": 2}), id="then unload"),
        pytest.param(2, 1, {1: READY, 2: FAILED}, Step((), (), {"a": 1}), id="keep the old"),
        pytest.param(3, 1, {1: READY, 2: FAILED}, Step((3,), (2,), {"a": 1}), id="a new attempt"),
        pytest.param(3, 1, {1: READY, 2: LOADING}, Step((3,), (2,), {"a": 1}), id="changed mind"),
        pytest.param(1, 2, {1: UNLOADED, 2: READY}, Step((1,), (), {"a": 2}), id="roll back"),
        pytest.param(1, 2, {1: UNLOADING, 2: READY}, Step((), (), {"a": 2}), id="drain first"),
        pytest.param(None, 1, {1: READY}, Step((), (1,), {}), id="alias deleted"),
        pytest.param(2, 1, {}, Step((1, 2), (), {"a": 1}), id="restart with a fallback"),
        pytest.param(2, 1, {1: FAILED, 2: LOADING}, Step((), (1,), {}), id="no fallback left"),
        pytest.param(1, 1, {1: FAILED}, Step((), (), {}), id="a failure is not tried again"),
    ],
)
def test_next_step(
    target: int | None, serving: int | None, states: Mapping[int, State], expected: Step
) -> None:
    targets = {} if target is None else {"a": target}
    assert next_step(targets, {} if serving is None else {"a": serving}, states) == expected


def test_a_version_stays_while_any_alias_means_it() -> None:
    states = {1: READY, 2: READY}
    step = next_step({"production": 2, "stable": 1}, {"production": 1, "stable": 1}, states)
    assert step == Step((), (), {"production": 2, "stable": 1})

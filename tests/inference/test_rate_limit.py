"""The rate limiter: who runs when several models need the same thing."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.engine import LoadFailedError
from servery_inference.rate_limit import Instance, RateLimiter, Turns
from servery_inference.run_resources import Demand, Provision, demands
from servery_inference.settings import InferenceSettings
from tests.inference import graphs
from tests.inference.calling import answers, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory

ENDLESS = 2**62
R = (-1, "R")


def needing(resources: str, count: int = 1) -> str:
    limiter = f"rate_limiter {{ {resources} }}"
    return f"max_batch_size: 0 instance_group {{ count: {count} kind: KIND_CPU {limiter} }}"


def resource(name: str, count: int, *, shared: bool = True) -> str:
    return f'resources {{ name: "{name}" global: {str(shared).lower()} count: {count} }}'


def ask(channel: grpc.aio.Channel, model: str, number: int, **parameters: int) -> Any:
    request = infer_request(model, {"x": np.array([number])})
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return stub(channel).ModelInfer(request, timeout=30)


@pytest.mark.parametrize("mode", ["off", "execution_count"])
async def test_what_needs_a_taken_resource_waits_and_others_do_not(
    tmp_path: Path, mode: str
) -> None:
    for name in ("one", "other"):
        graphs.store(tmp_path, name, graphs.patient())
        graphs.configure(tmp_path, name, needing(resource("R", 2)))
    graphs.store(tmp_path, "free", graphs.identity("INT64", ("n",)))
    async with serve_directory(tmp_path, rate_limit=mode) as channel:
        await ask(channel, "one", 1)
        endless = ask(channel, "one", ENDLESS)
        assert answers(await ask(channel, "free", 3))["y"] == [3]
        if mode == "off":
            assert answers(await ask(channel, "other", 1))["y"] == [1]
        else:
            error = await failure(ask(channel, "other", 1, timeout=200_000))
            assert error.reason == "ERROR_REASON_QUEUE_TIMEOUT"
            assert answers(await ask(channel, "free", 4))["y"] == [4]
            waiting = asyncio.ensure_future(_answer(ask(channel, "other", 1)))
            endless.cancel()
            assert (await waiting)["y"] == [1]
        endless.cancel()


async def _answer(call: Any) -> dict[str, graphs.Array]:
    return answers(await call)


async def test_every_request_is_answered_when_many_models_share_little(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    for priority, name in enumerate(names, 1):
        graphs.store(tmp_path, name, graphs.patient())
        graphs.configure(tmp_path, name, needing(resource("R", 1) + f" priority: {priority}", 2))
    async with serve_directory(
        tmp_path, rate_limit="execution_count", rate_limit_resource=("R:2",)
    ) as channel:
        asked = [(name, number) for number in range(1, 20) for name in names]
        got = await asyncio.gather(*[_answer(ask(channel, *each)) for each in asked])
        assert [each["y"].item() for each in got] == [number for _, number in asked]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("R:2",), 'Resource count for "R" is limited to 2'),
        (("Q:9",), 'Resource count for "R" is limited to 0'),
        (("R:9:1",), 'Resource count for "R" is limited to 0'),
    ],
)
async def test_a_model_that_could_never_run_is_not_loaded(
    tmp_path: Path, given: tuple[str, ...], text: str
) -> None:
    graphs.store(tmp_path, "m", graphs.patient())
    graphs.configure(tmp_path, "m", needing(resource("R", 3, shared=False)))
    async with serve_directory(
        tmp_path, rate_limit="execution_count", rate_limit_resource=given
    ) as channel:
        state, reason = (await index(channel))["m", "1"]
        assert state == "UNAVAILABLE"
        assert text in reason  # Operators of Triton search for it.


def _turn(turns: Turns) -> Instance | None:
    return turns.take(lambda: None)


async def _contest(models: Sequence[Turns], holder: Turns, rounds: int) -> list[Turns]:
    """Let all wait all the time for what one has; return who had it, one after the other."""
    running, order = _turn(holder), []
    for turns in models:
        if turns is not holder:
            assert _turn(turns) is None
    for _ in range(rounds):
        assert running is not None
        holder.end(running)
        running = _turn(holder)
        if running is None:
            holder, running = next(
                (t, got) for t in models if t is not holder and (got := _turn(t))
            )
        order.append(holder)
        await asyncio.sleep(0)
    assert running is not None
    holder.end(running)
    return order


async def test_turns_are_shared_out_by_priority() -> None:
    limiter = RateLimiter()
    models = [limiter.join([Demand({R: 1}, priority)]) for priority in (1, 2, 4)]
    order = await _contest(models, models[0], 70)
    assert [order.count(turns) for turns in models] == pytest.approx([40, 20, 10], abs=1)


async def test_what_was_idle_does_not_make_up_for_it() -> None:
    limiter = RateLimiter()
    busy, late = (limiter.join([Demand({R: 1})]) for _ in range(2))
    await _contest([busy], busy, 50)
    order = await _contest([busy, late], busy, 10)
    assert order.count(late) == 5


async def test_a_wide_run_is_not_starved_by_narrow_ones() -> None:
    limiter = RateLimiter()
    wide, narrow, other = (limiter.join([Demand({R: count})] * 2) for count in (2, 1, 1))
    first = _turn(narrow)
    assert first is not None
    assert _turn(wide) is None
    assert _turn(other) is None  # There is room, but the wide one came first.
    narrow.end(first)
    await asyncio.sleep(0)
    assert _turn(wide) is not None
    assert _turn(other) is None


async def test_an_unused_turn_goes_to_the_next() -> None:
    limiter = RateLimiter()
    one, other = (limiter.join([Demand({R: 1})]) for _ in range(2))
    first = _turn(one)
    assert first is not None
    woken: list[str] = []
    assert other.take(lambda: woken.append("other")) is None
    one.end(first)
    await asyncio.sleep(0)
    assert woken == ["other"]
    other.withdraw()
    await asyncio.sleep(0)
    assert _turn(one) is not None


async def test_limits_follow_what_is_loaded() -> None:
    limiter = RateLimiter()
    small, large = limiter.join([Demand({R: 1})] * 4), limiter.join([Demand({R: 3})])
    running = [_turn(small) for _ in range(4)]
    assert [instance is not None for instance in running] == [True, True, True, False]
    for instance in running[:3]:
        assert instance is not None
        small.end(instance)
    small.withdraw()
    large.close()
    assert [_turn(small) is not None for _ in range(2)] == [True, False]
    with pytest.raises(LoadFailedError):
        limiter.join([Demand({(0, "R"): 1})])


def test_devices_that_take_turns_have_no_resources_of_their_own() -> None:
    group = pb.ModelInstanceGroup(gpus=[0, 1], count=2)
    needed = group.rate_limiter.resources.add(name="R", count=1)
    with pytest.raises(LoadFailedError):
        demands(pb.ModelConfig(instance_group=[group]))
    setattr(needed, "global", True)  # A word of Python.
    assert demands(pb.ModelConfig(instance_group=[group])) == [Demand({R: 1})] * 4


@pytest.mark.parametrize("text", ["", "R", "R:", ":1", "R:-1", "R:1:", "R:1:a", "R:1:2:3"])
def test_a_resource_is_a_name_a_count_and_perhaps_a_device(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate_limit_resource"):
        InferenceSettings(
            model_repository=tmp_path, rate_limit="execution_count", rate_limit_resource=(text,)
        )
    assert Provision.parse("R:1:2") == Provision("R", 1, 2)


@pytest.mark.parametrize(
    "flags", [{"rate_limit": "on"}, {"rate_limit_resource": ("R:1",)}], ids=["mode", "while off"]
)
def test_settings_that_mean_nothing_are_refused(flags: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rate_limit"):
        InferenceSettings(model_repository=tmp_path, **flags)

"""Limits across runs: each running step holds a slot of Prefect's limit, and gives it back whatever happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import concurrency as concurrency_async
from prefect.concurrency.sync import concurrency

from bridge.flow_run.limits import LEASE_SECONDS, Limits
from bridge.flow_run.ready import Gate, Pass, Slots
from tests.integration.lab import Lab, eventually
from tests.integration.lives import Lives
from tests.integration.test_dynamic import in_turns
from tests.integration.under import Under, cancel

PER_STEP = {"execution_mode": "per_step"}
WAITS = "Waits for a slot of the concurrency limit"


@pytest.fixture
def limit(lab: Lab, tmp_path: Path) -> Iterator[str]:
    """A limit of one slot."""
    name = f"limit-{tmp_path.name}"
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
        yield name
        client.upsert_global_concurrency_limit_by_name(name, 1)
        client.delete_global_concurrency_limit_by_name(name)


def taken(limit: str) -> int:
    with get_client(sync_client=True) as client:
        return int(client.read_global_concurrency_limit_by_name(limit).active_slots)


def test_steps_wait_for_each_other_and_for_others(lab: Lab, limit: str, tmp_path: Path) -> None:
    """Somebody else holds the slot first; then two steps take turns that could run side by side."""
    import shapes

    under = Under(lab, tmp_path)
    with concurrency(limit, strict=True):
        under.start(shapes.fan_out, "process", {**PER_STEP, "concurrency_limit": limit}, width=2, seconds=0.1)
        under.until_logged(WAITS)
        assert taken(limit) == 1
        assert not under.pids()
    ran = under.join(120)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    first, second = sorted(
        [(ran.traces(step)[0]["time"], ran.traces(step, "end")[0]["time"]) for step in ("wide_0", "wide_1")]
    )
    assert first[1] <= second[0]
    assert eventually(lambda: taken(limit), lambda found: found == 0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_isolated_steps_of_a_dynamic_pipeline_take_turns(lab: Lab, limit: str, tmp_path: Path, place: str) -> None:
    """Each holds a slot while it has its sandbox; the sandbox of the function holds none."""
    import dynamics

    under = Under(lab, tmp_path)
    with concurrency(limit, strict=True):
        under.start(dynamics.narrow, place, {"concurrency_limit": limit}).until_logged(WAITS)
        assert len(under.ran.traces("seeds")) == 1
        assert not under.ran.traces("map:slow:0")
    ran = under.join(180)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    in_turns(lab, ran, place)
    assert eventually(lambda: taken(limit), lambda found: found == 0) == 0


@pytest.mark.parametrize("mode", ["per_step", pytest.param("pipeline", marks=pytest.mark.slow)])
def test_the_wait_can_be_cancelled(lab: Lab, limit: str, tmp_path: Path, mode: str) -> None:
    import shapes

    under = Under(lab, tmp_path)
    with concurrency(limit, strict=True):
        settings = {"execution_mode": mode, "concurrency_limit": limit}
        under.start(shapes.fan_out, "process", settings, width=1).until_logged(WAITS)
        cancel(under.flow_run_id)
        ran = under.join(20)
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert set(ran.states.values()) == {"Cancelled"}
    assert ran.steps == {}
    assert eventually(lambda: taken(limit), lambda found: found == 0) == 0


@pytest.mark.slow
def test_a_pipelines_sandbox_holds_one_slot_until_it_is_killed(lab: Lab, limit: str, tmp_path: Path) -> None:
    import stoppable

    under = Under(lab, tmp_path)
    under.start(stoppable.clinging, "process", {"execution_mode": "pipeline", "concurrency_limit": limit})
    under.until_steps({"hangs": "running", "clings": "running"})
    assert taken(limit) == 1
    cancel(under.flow_run_id)
    assert under.all_dead()
    under.join()
    assert taken(limit) == 0


@pytest.mark.slow  # two minutes: nobody can wait for less than a lease
@pytest.mark.timeout(600)
def test_the_slot_of_a_killed_process_comes_free(lab: Lab, limit: str, tmp_path: Path) -> None:
    """Its step lives on, but nobody renews the lease; somebody who waits for the slot gets it then."""
    under = Under(lab, tmp_path)
    with under.script("shapes.telling", "process", {"concurrency_limit": limit}):
        under.until_steps({"hung": "running"})
        assert taken(limit) == 1
    try:
        assert taken(limit) == 1
        assert eventually(lambda: taken(limit), lambda found: found == 0, LEASE_SECONDS + 90) == 0
        assert not under.all_dead(0)
    finally:
        (tmp_path / "go").touch()
    assert under.all_dead(30)


@pytest.mark.slow  # test_bad_input.py has one that isn't there
def test_a_limit_that_is_deleted_meanwhile(lab: Lab, limit: str, tmp_path: Path) -> None:
    import shapes

    under = Under(lab, tmp_path)
    with concurrency(limit, strict=True):
        under.start(shapes.fan_out, "process", {**PER_STEP, "concurrency_limit": limit}, width=1).until_logged(WAITS)
        with get_client(sync_client=True) as client:
            client.delete_global_concurrency_limit_by_name(limit)
        ran = under.join(20)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"wide_0": "failed"}
    assert f"prefect gcl create {limit}" in ran.flow_run.state.message


def test_who_had_begun_waits_on_where_nothing_new_may_start(lab: Lab, limit: str) -> None:
    """As a step does, after a crash, whose sandbox was lost meanwhile: it goes on in another one."""
    logger, waits = logging.getLogger("who-waits"), asyncio.Event()

    class Tells(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waits.set()

    logger.setLevel(logging.INFO)
    logger.addHandler(Tells())

    async def has_slot(goes_on: bool) -> bool:
        permit = Pass(Gate(Slots(None)), "step", 0, asyncio.Event())
        permit.last_attempt = True
        async with Limits().slot(limit, permit, uuid4(), logger, goes_on=goes_on) as held:
            return held

    async def both() -> None:
        async with concurrency_async(limit, strict=True):
            assert not await has_slot(goes_on=False)
            waiting = asyncio.ensure_future(has_slot(goes_on=True))
            await asyncio.wait_for(waits.wait(), 30)
            assert not waiting.done()
        assert await asyncio.wait_for(waiting, 60)

    asyncio.run(both())


@pytest.mark.slow  # a flow that dies takes a while; test_crash.py has the ways of it
def test_a_step_that_was_lost_before_its_run_was_stopped_has_waited_for_nothing(
    lab: Lab, limit: str, tmp_path: Path
) -> None:
    """Its flow died and its sandbox is forgotten; then the run was cancelled. Its step run is stopped as any."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("beside", "modal", {**PER_STEP, "warm": False, "concurrency_limit": limit}, steps=["one"])
        lives.until("one")
        lives.until_zenml({"one": "running"})
        lives.kill()
        lab.modal.forget(lives.under.ran.traces("one")[0]["sandbox"])
        cancel(lives.under.flow_run_id)
        ran = lives.go_on().end()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled"), lives.log[-6000:]
    assert ran.steps == {"one": "stopped"}
    assert "| one | Finished in state Cancelled('The step was stopped.')" in lives.log

"""Limits across runs: each running step holds a slot of Prefect's limit, and gives it back whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from bridge.limits import LEASE_SECONDS
from tests.integration.lab import Lab, eventually
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
def test_isolated_steps_of_a_dynamic_pipeline_take_turns(lab: Lab, limit: str, tmp_path: Path) -> None:
    """Each holds a slot while it has its sandbox; the sandbox of the function holds none."""
    import dynamics

    under = Under(lab, tmp_path)
    with concurrency(limit, strict=True):
        under.start(dynamics.narrow, "modal", {"concurrency_limit": limit}).until_logged(WAITS)
        assert len(under.ran.traces("seeds")) == 1
        assert not under.ran.traces("map:square:0")
    ran = under.join(180)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    boxes = sorted((box for box in lab.sandboxes(ran) if "zenml_step" in box.tags), key=lambda box: box.created_at)
    assert len(boxes) == 3
    for earlier, later in itertools.pairwise(boxes):
        assert earlier.created_at + earlier.seconds <= later.created_at
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

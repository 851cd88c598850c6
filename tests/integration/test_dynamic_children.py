"""Child pipelines of a dynamic one: what they may ask for, and the ends of their isolated steps."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from zenml.client import Client
from zenml.enums import ExecutionStatus

from bridge.dynamic_pipelines import asks
from bridge.zenml_side import step_runs
from tests.integration.lab import Lab, eventually
from tests.integration.lives import Lives
from tests.integration.under import Under


@pytest.mark.slow
def test_a_child_that_asks_for_what_its_sandbox_has_not(lab: Lab) -> None:
    """Its isolated steps have it; what would run in the sandbox of the pipeline that calls it is refused."""
    import dynamics

    ran = lab.run(dynamics.calling, lab.stack("modal"))
    assert ran.status == "failed"
    assert ran.states == {"calling": "Failed", "pipeline:modest: apart": "Completed"}
    assert {box.timeout for box in lab.sandboxes(ran) if box.tags.get("zenml_step") == "apart"} == {300}
    message = ran.flow_run.state.message
    assert "gpu of child pipeline greedy='T4'" in message
    assert "step one runs inline, in the sandbox of the pipeline that is run" in message
    assert not ran.traces("one")


@pytest.mark.slow
def test_a_child_that_names_what_changes_nothing(lab: Lab) -> None:
    """It runs, and hears of each setting once."""
    import dynamics

    ran = lab.run(dynamics.tolerant, lab.stack("process"))
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    text = "\n".join(lab.logs(ran.task_runs["tolerant"], 1))
    here = "runner='process' runs the steps on this machine"
    for field, why in (("warm", "the pipeline is dynamic"), ("modal_environment", here), ("gpu", here)):
        assert text.count(f"{field} of child pipeline careless: not used, {why}.") == 1, text


@pytest.mark.slow
def test_a_child_that_fails_fast_leaves_no_sandbox(lab: Lab, tmp_path: Path) -> None:
    """Its command, whose sandbox nothing else would end, was stopped just before it failed; its caller goes on."""
    import dynamics

    under = Under(lab, tmp_path).start(dynamics.catching, "modal", {})
    under.until_steps({"hangs_here": "running"})
    task_run = "pipeline:falling: sleeps"

    def state() -> str | None:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [under.flow_run_id]}))  # type: ignore[arg-type]
        return next((one.state.name for one in found if one.name == task_run and one.state), None)

    try:
        assert eventually(state, lambda found: found not in ("Pending", "Running"), 15) == "Cancelled"
    finally:
        (tmp_path / "go-here").touch()
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.states == {"catching": "Completed", task_run: "Cancelled"}
    (child,) = (member for member in step_runs.family(ran.run) if member.id != ran.run.id)
    sleeps, done_with = child.steps["sleeps"].id, set[UUID]()
    assert child.status is ExecutionStatus.FAILED
    first, again = (asks.asked(ran.run, done_with, {sleeps}) for _ in range(2))
    assert ([found.step_run.id for found in first], again) == ([sleeps], []), (
        "also where the flow sees both ends at once"
    )
    assert not asks.asked(ran.run, set(), set()), "one that had no sandbox"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["modal", "process"])
def test_what_a_child_stopped_while_the_flow_was_dead_is_ended(lab: Lab, tmp_path: Path, place: str) -> None:
    """A command doesn't hear of it: whoever goes on with the run ends its sandbox, long before the run is over."""
    import asyncio

    from bridge import names
    from bridge.components import Place

    async def running() -> list[str]:
        where = Place("modal", *lab.modal.token) if place == "modal" else Place("process")
        async with where.runner_for() as runner:
            found = await runner.tagged({names.TAG_RUN_ID: str(run_id)})
        return sorted(tags.get(names.TAG_STEP, "") for _, tags in found)

    with Lives(lab, tmp_path) as lives:
        lives.begin("catches", place, {})
        run_id = lives.under.run_id  # before there is a child's
        lives.until("fails")
        assert eventually((tmp_path / "sleeps").exists, bool, 60)
        lives.kill()
        lives.fail("fails-1")
        lives.go("fails-1")
        lives.until("goes_on")
        (child,) = (member for member in step_runs.family(Client().get_pipeline_run(run_id)) if member.id != run_id)
        assert child.steps["sleeps"].status is ExecutionStatus.STOPPED
        assert asyncio.run(running()) == ["", "sleeps"]
        lives.go_on()
        assert eventually(lambda: asyncio.run(running()), lambda found: found == [""], 60) == [""]
        lives.go("goes_on-1")
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert len(ran.traces("goes_on")) == 1


@pytest.mark.slow
def test_what_runs_is_taken_up_before_what_waits(lab: Lab, tmp_path: Path) -> None:
    """A step of a child ran when the flow died, one of the pipeline itself stood in line behind it: it stays there."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("crowded", "process", {"max_parallelism": 1})
        assert lives.under.run_id  # read now: the child's run is the newest later
        lives.until("runs")
        lives.until("here")
        lives.go("here-1")
        lives.until_zenml({"here": "completed", "waits": "provisioning"})
        lives.kill()
        lives.go_on()
        lives.until_signed()
        ran = lives.under.ran
        assert eventually(lambda: ran.traces("waits", "begin"), bool, 20) == [], "a second sandbox, where one may be"
        lives.go("runs-1", "waits-1")
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert ran.states == {"crowded": "Completed", "pipeline:one_apart: runs": "Completed", "waits": "Completed"}
    assert {step: len(ran.traces(step, "begin")) for step in ("runs", "here", "waits")} == {
        "runs": 1,
        "here": 1,
        "waits": 1,
    }

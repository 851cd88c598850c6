"""ZenML's resource pools: a step of a dynamic pipeline runs before it asks for its sandbox, and may lose its place.

The server that tests can have is without pools, so what one with them writes down is written into its database.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils

from bridge.dynamic_pipelines import asks
from bridge.flow_run.open_run import load_snapshot
from tests.databases import PLACES
from tests.integration import begun
from tests.integration.lab import PROJECT, Lab
from tests.integration.under import Under


@pytest.fixture
def run(lab: Lab) -> PipelineRunResponse:
    """A run of a dynamic pipeline, as far as ZenML knows."""
    import dynamics

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    pipeline = dynamics.held.with_options(parameters={"folder": "nowhere"})
    snapshot = load_snapshot(pipeline.create_snapshot(name=f"pools-{uuid4().hex[:8]}").id)
    return create_placeholder_run(snapshot, str(uuid4()))


def begin(run: PipelineRunResponse, name: str) -> UUID:
    """A step run of it that runs."""
    return begun.begin(run, name, dynamic=begun.dynamic_step(run, name, "shapes.one")).id


def has_a_place(lab: Lab, step_run_id: UUID) -> None:
    """A pool has one for it."""
    write_down(lab, step_run_id, "resource_request_id", uuid4().hex)


def loses_its_place(lab: Lab, step_run_id: UUID) -> None:
    """Another step is worth more (zenml/zen_stores/sql_zen_store.py, ``resource_request_id`` of a heartbeat)."""
    write_down(lab, step_run_id, "status", ExecutionStatus.CANCELLING.value)


def write_down(lab: Lab, step_run_id: UUID, column: str, value: str) -> None:
    with closing(sqlite3.connect(lab.folder / PLACES["zenml"], timeout=30)) as database, database:
        change = f"update step_run set {column} = ? where id = ?"
        assert database.execute(change, [value, step_run_id.hex]).rowcount == 1


def test_a_step_that_stood_in_line_when_its_function_was_lost(lab: Lab, run: PipelineRunResponse) -> None:
    """Its place is given up with who stood there for it, so it has failed, and ZenML tries it again if it may."""
    waits = begin(run, "waits")
    has_a_place(lab, waits)
    write_down(lab, waits, "status", ExecutionStatus.PROVISIONING.value)
    orchestrator = Client().active_stack.orchestrator
    step_run = Client().get_run_step(waits)
    assert [orchestrator.get_isolated_step_status(step_run) for _ in range(2)] == [ExecutionStatus.FAILED] * 2
    assert asks.asked(run, set(), set()) == []
    write_down(lab, waits, "status", ExecutionStatus.RUNNING.value)
    assert orchestrator.get_isolated_step_status(step_run) is ExecutionStatus.RUNNING, "it has its place"
    assert [found.step_run.id for found in asks.asked(run, set(), set())] == [waits]


def test_a_step_that_runs_before_it_has_asked(lab: Lab, run: PipelineRunResponse) -> None:
    """It is no inline one, which wants no sandbox: it gets one once it asks."""
    inline, isolated = begin(run, "inline"), begin(run, "isolated")
    has_a_place(lab, isolated)
    assert Client().get_run_step(isolated).resource_request_id is not None
    done_with: set[UUID] = set()
    assert asks.asked(run, done_with, set()) == []
    assert done_with == {inline}
    asks.ask(isolated, Client().active_stack.orchestrator.id)
    (found,) = asks.asked(run, done_with, set())
    assert (found.run.id, found.step_run.id) == (run.id, isolated)
    assert found.step_run.status is ExecutionStatus.RUNNING


@pytest.mark.slow  # a heartbeat comes every 15 s
@pytest.mark.parametrize("place", ["process", "modal"])
def test_a_step_whose_place_is_taken_away(lab: Lab, tmp_path: Path, place: str) -> None:
    """Its process is told by the heartbeat, and says that it is cancelled; ZenML tries again, in another sandbox."""
    import dynamics

    under = Under(lab, tmp_path).start(dynamics.held_at_first, place, {}).until_steps({"hung": "running"})
    first = Client().get_pipeline_run(under.run_id).steps["hung"]
    loses_its_place(lab, first.id)
    ran = under.join(120)
    assert (ran.status, ran.steps) == ("completed", {"hung": "completed", "add": "completed"})
    assert not ran.traces("hung", "end")[:-1], "what lost its place didn't go on"
    assert len(ran.traces("hung")) == 2
    assert ran.states == {"held_at_first": "Completed", "hung": "Failed", "hung (attempt 2)": "Completed"}
    assert "StepHeartBeatTerminationException" in ran.task_runs["hung"].state.message
    newest = ran.run.steps["hung"]
    assert (newest.version, newest.id == first.id) == (2, False)
    assert Client().get_run_step(first.id).status is ExecutionStatus.RETRIED
    assert under.all_dead()

"""ZenML's resource pools have a step of a dynamic pipeline run before it asks for its sandbox."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from uuid import UUID, uuid4

import pytest
from zenml.client import Client
from zenml.config.step_configurations import Step
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils

from bridge import asks
from bridge.run import load_snapshot
from tests.databases import PLACES
from tests.integration import begun
from tests.integration.lab import PROJECT, Lab


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
    step = {
        "spec": {
            "source": {"module": "shapes", "attribute": "one", "type": "user"},
            "upstream_steps": [],
            "invocation_id": name,
        },
        "step_config_overrides": {"name": name},
    }
    dynamic = Step.from_dict(step, pipeline_configuration=run.config, exclude_hook_sources=False)
    return begun.begin(run, name, dynamic=dynamic).id


def has_a_place(lab: Lab, step_run_id: UUID) -> None:
    """What a server with resource pools writes down: the one that tests can have is without them."""
    with closing(sqlite3.connect(lab.folder / PLACES["zenml"], timeout=30)) as database, database:
        change = "update step_run set resource_request_id = ? where id = ?"
        assert database.execute(change, [uuid4().hex, step_run_id.hex]).rowcount == 1


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

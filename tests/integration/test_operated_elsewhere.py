"""A step operator is asked after a step run that another process began, and that has come to an end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from zenml.client import Client
from zenml.enums import ExecutionStatus, StackComponentType
from zenml.models import StepRunResponse
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.stack import StackComponent
from zenml.utils import source_utils

from bridge.flow_run.open_run import load_snapshot
from tests.databases import PLACES
from tests.integration.begun import begin
from tests.integration.lab import PROJECT, Lab

UNDERSTOOD = {
    ExecutionStatus.COMPLETED: ExecutionStatus.COMPLETED,
    ExecutionStatus.CACHED: ExecutionStatus.COMPLETED,
    ExecutionStatus.SKIPPED: ExecutionStatus.COMPLETED,
    ExecutionStatus.FAILED: ExecutionStatus.FAILED,
    ExecutionStatus.RETRYING: ExecutionStatus.FAILED,
    ExecutionStatus.RETRIED: ExecutionStatus.FAILED,
    ExecutionStatus.STOPPING: ExecutionStatus.STOPPED,
    ExecutionStatus.STOPPED: ExecutionStatus.STOPPED,
    ExecutionStatus.CANCELLING: ExecutionStatus.STOPPED,
    ExecutionStatus.CANCELLED: ExecutionStatus.STOPPED,
    # Whose sandbox is gone, and who would have said so too.
    ExecutionStatus.RUNNING: ExecutionStatus.FAILED,
}
"""By what ZenML has of the step run: which end the step operator says that it came to. ZenML asks again, for ever,
after any that isn't one of these three."""

THE_SERVERS = {ExecutionStatus.RETRYING, ExecutionStatus.RETRIED, ExecutionStatus.CANCELLING}
"""Only ZenML's server gives a step run one of these."""


@pytest.fixture
def step_run_with(lab: Lab, tmp_path: Path) -> Callable[[ExecutionStatus], StepRunResponse]:
    """Makes a step run with this status in a run of its own."""
    import shapes

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    pipeline = shapes.chain.with_options(enable_cache=False)
    pipeline.prepare(str(tmp_path))
    snapshot = load_snapshot(pipeline.create_snapshot(name=f"elsewhere-{uuid4().hex[:8]}").id)

    def make(status: ExecutionStatus) -> StepRunResponse:
        run = create_placeholder_run(snapshot, str(uuid4()))
        step_run = begin(run, status=ExecutionStatus.RUNNING if status in THE_SERVERS else status)
        if status in THE_SERVERS:
            with closing(sqlite3.connect(lab.folder / PLACES["zenml"], timeout=30)) as database, database:
                database.execute("update step_run set status = ? where id = ?", [status.value, step_run.id.hex])
        return step_run

    return make


def test_zenml_is_told_an_end_that_it_understands(
    lab: Lab, step_run_with: Callable[[ExecutionStatus], StepRunResponse]
) -> None:
    name = f"operator-{uuid4().hex[:6]}"
    configuration = {"runner": "process"}
    model = Client().create_stack_component(name, "modal-prefect", StackComponentType.STEP_OPERATOR, configuration)
    operator: Any = StackComponent.from_model(model)
    assert UNDERSTOOD.keys() >= {status for status in ExecutionStatus if status.is_finished}
    step_runs = {status: step_run_with(status) for status in UNDERSTOOD}
    assert {status: operator.get_status(step_run) for status, step_run in step_runs.items()} == UNDERSTOOD
    now = {status: Client().get_run_step(step_run.id).status for status, step_run in step_runs.items()}
    assert now == {**dict(zip(UNDERSTOOD, UNDERSTOOD, strict=True)), ExecutionStatus.RUNNING: ExecutionStatus.FAILED}

"""The names of Prefect that its documentation doesn't promise, each with the reason why it is used.

``tests/integration/test_upstream_prefect.py`` checks every one of them on the oldest and newest Prefect that
is supported.

- ``prefect.flow_engine.run_flow``: runs a flow run that exists already. Prefect's own worker does it so
  (prefect/engine.py); the public call always makes a new flow run, whose id would be known too late to be the
  ZenML run's ``orchestrator_run_id``.
- ``prefect.task_engine.run_task_async``: takes a task run's inputs as data. The public ``wait_for=`` refuses
  upstream states that are Cancelled, which is what a step that never ran has to point at. And it takes a task run:
  one that an earlier process of the flow run began goes on, under its id and with its count of attempts.
- ``Task.create_local_run``: how the engine itself makes a task run that the server hears of by its states alone.
- ``prefect.utilities.engine.emit_task_run_state_change_event``: a task run that waits for its retry sits in the
  engine's own sleep; cancelling it there leaves it Crashed. This is how the engine itself reports states.
- ``prefect.telemetry.run_telemetry.LABELS_TRACEPARENT_KEY``: where a worker's engine finds the trace that a flow run is
  part of. It opens a span of its own, below which ours are; without this label it begins another trace.
- ``prefect._vendor.croniter``: what Prefect's server reckons the dates of a cron expression with. Its client looks at
  the syntax alone, and one whose date never comes stops the scheduler for all schedules of a deployment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect import Flow, Task
from prefect._vendor.croniter import CroniterBadDateError, croniter  # type: ignore[attr-defined]
from prefect.client.schemas.objects import FlowRun, RunInput, State, TaskRun, TaskRunResult
from prefect.flow_engine import run_flow
from prefect.task_engine import run_task_async
from prefect.telemetry.run_telemetry import LABELS_TRACEPARENT_KEY
from prefect.utilities.engine import emit_task_run_state_change_event

UPSTREAM_PARAMETER = "upstream"


def run_existing_flow_run(flow: Flow[..., Any], flow_run: FlowRun, parameters: Mapping[str, object]) -> State[Any]:
    """Run ``flow`` as the flow run that exists already and return its final state."""
    state = run_flow(flow, flow_run=flow_run, parameters=dict(parameters), return_type="state")
    if not isinstance(state, State):
        raise TypeError(f"Prefect returned {type(state).__name__} for a flow run, not its state")
    return state


def ever_comes(cron: str, after: datetime) -> bool:
    """Whether a cron expression that Prefect takes has a date after this time, within fifty years."""
    try:
        croniter(cron, after).get_next(datetime)  # type: ignore[no-untyped-call]
    except CroniterBadDateError:
        return False
    return True


def labels_of_trace(variables: Mapping[str, str]) -> dict[str, str]:
    """The labels of a flow run that goes on with the trace in these variables; none where there is none."""
    return {LABELS_TRACEPARENT_KEY: variables["TRACEPARENT"]} if "TRACEPARENT" in variables else {}


async def run_task_after(
    task: Task[..., Any], task_run_id: UUID, upstream: Iterable[UUID], attempts_before: int = 0
) -> State[Any]:
    """Run an async task as the task run ``task_run_id`` with ``upstream`` as its task inputs.

    The function of the task takes one argument, named ``upstream``: inputs are recorded by argument.
    ``attempts_before`` is how many attempts the task run has had already, in earlier processes of the flow run: its
    ``run_count`` goes on from there. Returns its final state; raises what Prefect's engine raises for a task run,
    which is nothing for one whose function returns a state.
    """
    inputs: set[RunInput] = {TaskRunResult(id=task_run) for task_run in upstream}
    parameters: dict[str, Any] = {UPSTREAM_PARAMETER: ()}
    task_run = await task.create_local_run(
        id=task_run_id, parameters=parameters, extra_task_inputs={UPSTREAM_PARAMETER: inputs}
    )
    assert task_run.state is not None, "a task run is made Pending"
    task_run.run_count = attempts_before
    emit_task_run_state_change_event(task_run=task_run, initial_state=None, validated_state=task_run.state)
    state = await run_task_async(task, task_run=task_run, parameters=parameters, return_type="state")
    if not isinstance(state, State):
        raise TypeError(f"Prefect returned {type(state).__name__} for a task run, not its state")
    return state


def report_task_run_state(task_run: TaskRun, state: State[Any]) -> None:
    """Put a task run that no engine works on any more into ``state``, as the engine would have done."""
    before = task_run.state
    state.state_details.task_run_id = task_run.id
    state.state_details.flow_run_id = task_run.flow_run_id
    task_run.state = state
    task_run.state_id, task_run.state_type, task_run.state_name = state.id, state.type, state.name
    task_run.end_time = state.timestamp  # type: ignore[assignment]  # Prefect declares its own datetime
    emit_task_run_state_change_event(task_run=task_run, initial_state=before, validated_state=state)

"""What a process left open in Prefect which died: where nothing goes on with it, it is given an end."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.client.schemas.sorting import TaskRunSort
from prefect.states import Cancelled, Completed, Failed
from zenml.client import Client
from zenml.enums import ExecutionStatus

from bridge import names
from bridge.prefect_side import prefect_pages
from bridge.prefect_side.prefect_api import prefect_api
from bridge.upstream_prefect import report_task_run_state
from bridge.zenml_side import step_runs


def close_flow_run(flow_run: FlowRun, run_id: UUID | None, ended: ExecutionStatus, because: str) -> None:
    """End a flow run that no process works on as its ZenML run has ended, and its open task runs with it.

    One that has an end keeps it, unless it is Crashed; ``run_id`` is None where ZenML has deleted the run.

    Raises ``PrefectUnavailable``, and what ZenML's client raises.
    """
    with prefect_api() as prefect:
        state = flow_run.state
        if state is None or not state.is_final() or state.is_crashed():
            prefect.set_flow_run_state(flow_run.id, _flow_state(ended, because), force=True)
        if run_id is not None:
            # From here an event, as an engine tells it, would take the task run away from its flow run.
            close_task_runs(
                flow_run.id,
                run_id,
                because,
                tell=lambda task_run, state: prefect.set_task_run_state(task_run.id, state, force=True),
            )


def _flow_state(ended: ExecutionStatus, message: str) -> State[None]:
    if ended is ExecutionStatus.COMPLETED:
        return Completed(message=message)
    return Cancelled(message=message) if ended is ExecutionStatus.STOPPED else Failed(message=message)


def close_task_runs(
    flow_run_id: UUID,
    run_id: UUID,
    because: str,
    tell: Callable[[TaskRun, State[None]], object] = report_task_run_state,
    own: Collection[UUID] = (),
) -> None:
    """End the open task runs of a flow run as ZenML says that their steps ended; unfinished ones for ``because``.

    ``tell`` tells Prefect: by an event, as its engine does, where this is the flow run's own process. From elsewhere an
    event would take the task run away from its flow run. ``own`` are left alone: the process that asks has ended them,
    which Prefect may not have recorded yet.

    Raises ``PrefectUnavailable``, and what ZenML's client raises.
    """
    run = Client().get_pipeline_run(run_id)
    ends = {names.task_run_id(str(flow_run_id), step): found.status for step, found in run.steps.items()}
    ends[names.task_run_id(str(flow_run_id), None)] = run.status
    if step_runs.is_dynamic(run):
        for step_run_id, status in step_runs.statuses(run).items():
            ends[names.isolated_task_run_id(str(flow_run_id), str(step_run_id))] = status
    for task_run in (found for found in _open(flow_run_id) if found.id not in own):
        tell(task_run, _state(ends.get(task_run.id), because))


def _open(flow_run_id: UUID) -> list[TaskRun]:
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    with prefect_api() as client:
        read = partial(client.read_task_runs, flow_run_filter=chosen, sort=TaskRunSort.ID_DESC)
        found = prefect_pages.each(read)
        return [task_run for task_run in found if task_run.state is None or not task_run.state.is_final()]


def _state(status: ExecutionStatus | None, because: str) -> State[None]:
    if status is not None and status.is_successful:
        return Completed()
    if status in (ExecutionStatus.FAILED, ExecutionStatus.RETRYING, ExecutionStatus.RETRIED):
        return Failed(message="It failed while no process worked on its flow run; ZenML has the exception.")
    return Cancelled(message=because)

"""What Prefect's flow run says of a ZenML run, for ZenML's ``refresh``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from bridge.errors import PrefectUnavailable
from bridge.prefect_side.prefect_api import prefect_api
from bridge.submitting.deleted import doubt_of_deletion
from bridge.zenml_side import step_runs

if TYPE_CHECKING:
    from bridge.orchestrator import ModalPrefectOrchestrator

Statuses = tuple[ExecutionStatus | None, dict[str, ExecutionStatus] | None]

_OF_FLOW_RUN = {
    StateType.RUNNING: ExecutionStatus.RUNNING,
    StateType.PAUSED: ExecutionStatus.RUNNING,
    StateType.COMPLETED: ExecutionStatus.COMPLETED,
    StateType.FAILED: ExecutionStatus.FAILED,
    StateType.CANCELLING: ExecutionStatus.STOPPING,
    # ZenML makes STOPPED of it once no step run is unfinished; a published STOPPED it would turn back to running
    # (zenml/zen_stores/schemas/pipeline_run_schemas.py, _compute_static_pipeline_run_status).
    StateType.CANCELLED: ExecutionStatus.STOPPING,
}
_OUR_FLOW_MAKES = (ExecutionStatus.STOPPING, ExecutionStatus.PAUSED, ExecutionStatus.RESUMING)
_NOBODY_WORKS = (StateType.FAILED, StateType.CANCELLED)


_ANOTHER_PREFECT = (
    "Is it another Prefect? Look at `prefect config view` here and where the run was submitted, or set "
    "`prefect_api_url` on the orchestrator. If the flow run was deleted, `zenml pipeline runs stop` ends the run."
)


def fetch(run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator, include_steps: bool) -> Statuses:
    """Return the status of a run and, where asked for, of its steps.

    What ZenML calls finished is finished, and where Prefect says nothing new ZenML's status stands: while a flow run
    waits, and for a crashed one, whose run goes on once it is retried. A deleted flow run is a cancelled one.

    Raises ``PrefectUnavailable``, also where it may be another Prefect that has the flow run.
    """
    steps = {name: step.status for name, step in run.steps.items()} if include_steps else None
    if run.status.is_finished or run.orchestrator_run_id is None:
        return run.status, steps
    flow_run = read_flow_run(run)
    if flow_run is None and (doubt := doubt_of_deletion(run, orchestrator)):
        # ZenML makes what is returned the run's status, and a flow that is at work stops at that.
        raise PrefectUnavailable(f"{doubt}. {_ANOTHER_PREFECT}")
    status = _status(flow_run, run.status)
    if status is ExecutionStatus.STOPPING and _is_over(flow_run) and step_runs.is_dynamic(run):
        status = ExecutionStatus.STOPPED  # ZenML reckons with no steps there
    if steps is not None and _is_over(flow_run):
        steps = {name: status if status.is_finished else ExecutionStatus.STOPPED for name, status in steps.items()}
    return status, steps


def read_flow_run(run: PipelineRunResponse) -> FlowRun | None:
    """Return the flow run of a run, None if it was deleted. Raises ``PrefectUnavailable``."""
    if run.orchestrator_run_id is None:
        raise ValueError(f"run {run.id} has no flow run")
    with prefect_api() as client:
        try:
            return client.read_flow_run(UUID(run.orchestrator_run_id))
        except ObjectNotFound:
            return None


def _status(flow_run: FlowRun | None, known: ExecutionStatus) -> ExecutionStatus:
    if flow_run is None:
        return ExecutionStatus.STOPPING
    found = _OF_FLOW_RUN.get(flow_run.state.type, known) if flow_run.state is not None else known
    # A flow that ends its run, or has just begun to go on with a paused one, is still at work.
    return known if found is ExecutionStatus.RUNNING and known in _OUR_FLOW_MAKES else found


def _is_over(flow_run: FlowRun | None) -> bool:
    """Whether nobody will finish steps that are unfinished: not so after a crash, which may be gone on from."""
    return flow_run is None or (flow_run.state is not None and flow_run.state.type in _NOBODY_WORKS)

"""Opening the ZenML run of a flow run, from ids alone, where the flow runs; and giving it up where that can't be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse, PipelineRunUpdate, PipelineSnapshotResponse
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.stack import Stack

from bridge import names
from bridge.errors import RunNotPossible
from bridge.flow_run.run import LOG_ENVIRONMENT, Run, environment_of, is_over
from bridge.planning.network import check_ways_to_zenml
from bridge.versions import check_zenml
from bridge.zenml_side.run_status import end_run

if TYPE_CHECKING:
    from bridge.dynamic_pipelines.isolated import Layer
    from bridge.orchestrator import ModalPrefectOrchestrator


def load_snapshot(snapshot_id: UUID) -> PipelineSnapshotResponse:
    """Load a snapshot with its steps. Raises ``RunNotPossible`` if there is none."""
    try:
        return Client().zen_store.get_snapshot(snapshot_id)
    except KeyError:
        raise RunNotPossible(
            f"snapshot_id={snapshot_id}: this ZenML server has no such snapshot. Take an id from "
            f"`zenml pipeline snapshot list`, and check with `zenml status` that this is the right server."
        ) from None


def load_stack(snapshot: PipelineSnapshotResponse) -> tuple[Stack, ModalPrefectOrchestrator]:
    """Load the stack that a snapshot was made for, which need not be the active one."""
    from bridge.orchestrator import ModalPrefectOrchestrator

    if snapshot.stack is None:
        raise RunNotPossible(
            f"snapshot_id={snapshot.id}: its stack was deleted. Run the pipeline again on a stack that exists."
        )
    stack = Stack.from_model(snapshot.stack)
    if not isinstance(stack.orchestrator, ModalPrefectOrchestrator):
        raise RunNotPossible(
            f"snapshot_id={snapshot.id}: its stack `{stack.name}` has the orchestrator `{stack.orchestrator.name}` "
            f"of flavour `{stack.orchestrator.flavor}`. Run the pipeline on a stack whose orchestrator is "
            f"`{names.FLAVOR}`."
        )
    return stack, stack.orchestrator


def adopt_run(
    snapshot: PipelineSnapshotResponse,
    run_id: UUID | None,
    flow_run_id: str,
    on_new: Callable[[], None] = lambda: None,
) -> PipelineRunResponse:
    """Return the ZenML run that this flow run works on, made now if there is none yet; ``on_new`` is called then.

    Raises ``RunNotPossible`` if it doesn't exist, or belongs to another snapshot or flow run; ``RunIsOver`` if it has
    ended. One that this flow run has completed, but died before it could say so, is no error.
    """
    client = Client()
    if run_id is None:
        known = _run_of(flow_run_id, snapshot.project_id)
        run = known or create_placeholder_run(snapshot, flow_run_id)
        if known is None:
            on_new()
    else:
        try:
            run = client.get_pipeline_run(run_id, project=snapshot.project_id)
        except KeyError:
            raise RunNotPossible(
                f"run_id={run_id}: this ZenML server has no such run. Leave `run_id` out to start a new one."
            ) from None
    _check(run, snapshot, flow_run_id)
    if run.orchestrator_run_id is None:
        client.zen_store.update_run(run.id, PipelineRunUpdate(orchestrator_run_id=flow_run_id))
        run = client.get_pipeline_run(run.id, project=snapshot.project_id)
    return run


def _run_of(flow_run_id: str, project_id: UUID) -> PipelineRunResponse | None:
    """The ZenML run that a flow run made: the oldest, since child pipelines of a dynamic one have its id as well."""
    found = Client().list_pipeline_runs(
        orchestrator_run_id=flow_run_id, project=project_id, sort_by="asc:created", size=1, hydrate=True
    )
    return found.items[0] if found.items else None


def _check(run: PipelineRunResponse, snapshot: PipelineSnapshotResponse, flow_run_id: str) -> None:
    if run.snapshot is not None and run.snapshot.id != snapshot.id:
        raise RunNotPossible(
            f"run_id={run.id}: this run belongs to snapshot {run.snapshot.id}, not to {snapshot.id}. "
            f"Leave `run_id` out to start a new run of the snapshot."
        )
    if run.orchestrator_run_id not in (None, flow_run_id):
        raise RunNotPossible(
            f"run_id={run.id}: the flow run {run.orchestrator_run_id} works on this run. "
            f"Leave `run_id` out to start a new run, or retry that flow run with "
            f"`prefect flow-run retry {run.orchestrator_run_id}`."
        )
    if run.status.is_finished and not (
        run.status is ExecutionStatus.COMPLETED and run.orchestrator_run_id == flow_run_id
    ):
        raise is_over(run)


def open_run(snapshot_id: UUID, run_id: UUID | None, flow_run_id: str) -> Run:
    """Open the ZenML run of a flow run. Raises ``RunNotPossible`` or ``InvalidSettings``; starts nothing."""
    snapshot = load_snapshot(snapshot_id)
    check_zenml(snapshot)
    stack, orchestrator = load_stack(snapshot)
    translation = orchestrator.translation(snapshot)
    plan = translation.plan
    if orchestrator.config.runner == "modal":
        check_ways_to_zenml(plan, Client().zen_store.url)
    # Of a run that ZenML submitted it was said then.
    run = adopt_run(snapshot, run_id, flow_run_id, on_new=lambda: orchestrator.announce(snapshot, translation))
    return Run(
        snapshot=snapshot,
        run=run,
        stack=stack,
        plan=plan,
        config=orchestrator.config,
        flow_run_id=flow_run_id,
        environment={
            names.ENV_FLOW_RUN_ID: flow_run_id,
            names.ENV_RUN_ID: str(run.id),
            names.ENV_ORPHAN_TIMEOUT: str(plan.orphan_timeout),
            **LOG_ENVIRONMENT,
            **orchestrator.local_environment(),
        },
        secret_environment=environment_of(run, snapshot),
    )


def layer_of(run: Run) -> Layer:
    """What lies beneath the settings of the steps of a dynamic pipeline."""
    from bridge.orchestrator import ModalPrefectOrchestrator

    orchestrator = run.stack.orchestrator
    if not isinstance(orchestrator, ModalPrefectOrchestrator):
        raise TypeError(f"The orchestrator of a run is none of ours: {type(orchestrator).__name__}")
    return orchestrator.layer(run.snapshot)


def give_up(snapshot_id: UUID, run_id: UUID | None, flow_run_id: str, why: str) -> None:
    """End the ZenML run of a flow run which can't begin, submitted together or made by it: nobody else would.

    Leaves runs alone that aren't this flow run's.
    """
    run = own_run(snapshot_id, run_id, flow_run_id)
    if run is not None:
        end_run(run, failures={"": why}, stopped=False)


def own_run(snapshot_id: UUID, run_id: UUID | None, flow_run_id: str) -> PipelineRunResponse | None:
    """Return the ZenML run that a flow run works on; None if there is none, or it is another flow run's."""
    try:
        if run_id is None:
            snapshot = Client().zen_store.get_snapshot(snapshot_id, hydrate=False)
            run = _run_of(flow_run_id, snapshot.project_id)
        else:
            run = Client().get_pipeline_run(run_id)
    except KeyError:
        return None
    return run if run is not None and run.orchestrator_run_id == flow_run_id else None

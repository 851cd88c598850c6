"""Running a flow run again whose process died: what `modal-prefect resume` does.

What the new process then finds and goes on with is :mod:`bridge.flow_run.resume`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Pending, Scheduled
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from bridge import names
from bridge.cleanup import orphans, signs_of_life
from bridge.errors import RunNotPossible, how_to_replay
from bridge.flow_run.flow_process import alive_here, doubt_of_death
from bridge.flow_run.left_open import close_flow_run
from bridge.flow_run.open_run import load_snapshot, load_stack, own_run
from bridge.flow_run.run import is_over
from bridge.plan import FailureMode, Plan
from bridge.prefect_side.prefect_api import prefect_api, prefect_settings
from bridge.submitting.stop_run import end_sandboxes, nothing_runs
from bridge.submitting.submission import run_here
from bridge.submitting.work_pool import nobody_works
from bridge.zenml_side import step_runs

if TYPE_CHECKING:
    from bridge.orchestrator import ModalPrefectOrchestrator


@dataclass(frozen=True)
class Dead:
    """A flow run whose process is gone, and what it was at."""

    flow_run: FlowRun
    run: PipelineRunResponse
    plan: Plan


def resume(some_id: UUID, *, sure: bool, here: bool, say: Callable[[str], None]) -> None:
    """Run a dead flow run again: by a worker if it has a deployment, else, and with ``here``, in this process.

    Args:
        some_id: The id of the flow run, or of its ZenML run.
        sure: Whether the caller knows that its process is gone, where nothing else tells.
        here: Whether to run it in this process although a worker could.
        say: Told what is done.

    Where ZenML's run has ended without its flow, what that left is ended too. Where the flow run was cancelled and its
    run hasn't ended, ending it is all there is to do.

    Raises ``RunNotPossible`` (``RunIsOver`` where ZenML's run has ended) where there is nothing to go on with, or its
    process may be alive; ``PrefectUnavailable``; and in this process ``RunFailed`` or ``RunStopped``.
    """
    found = _zenml_run(some_id)
    config = load_stack(load_snapshot(_snapshot_id(found)))[1].config if found is not None else None
    if config is None:
        _resume(some_id, found, sure, here, say)
        return
    with prefect_settings(config):
        _resume(some_id, found, sure, here, say)


def _resume(
    some_id: UUID, found: PipelineRunResponse | None, sure: bool, here: bool, say: Callable[[str], None]
) -> None:
    with prefect_api() as client:
        dead = _dead(client, some_id, found, sure, say)
        if dead is None:
            return
        state = dead.flow_run.state
        if state is not None and not state.is_final():
            message = f"Its process is gone; `modal-prefect resume` found it {state.name}."
            client.set_flow_run_state(dead.flow_run.id, Crashed(message=message), force=True)
        # Prefect runs nothing that is in a final state, and a worker takes what is Scheduled.
        by_worker, message = dead.flow_run.deployment_id is not None and not here, "Goes on after a crash."
        again: State[None] = Scheduled(message=message) if by_worker else Pending(message=message)
        client.set_flow_run_state(dead.flow_run.id, again, force=True)
        if by_worker:
            say(f"Flow run {dead.flow_run.name} ({dead.flow_run.id}) waits for a worker, which goes on with it.")
            if dead.flow_run.work_pool_name and (warning := nobody_works(client, dead.flow_run.work_pool_name)):
                say(warning)
            return
        flow_run = client.read_flow_run(dead.flow_run.id)
    say(f"Flow run {flow_run.name} ({flow_run.id}) goes on in this process.")
    run_here(flow_run, dead.plan)


def _zenml_run(some_id: UUID) -> PipelineRunResponse | None:
    try:
        return Client().zen_store.get_run(some_id, hydrate=True)
    except KeyError:
        return None


def _snapshot_id(run: PipelineRunResponse) -> UUID:
    if run.snapshot is None:
        raise RunNotPossible(f"run_id={run.id}: its snapshot was deleted, so nobody knows its steps any more.")
    return run.snapshot.id


def _dead(
    client: SyncPrefectClient,
    some_id: UUID,
    run: PipelineRunResponse | None,
    sure: bool,
    say: Callable[[str], None],
) -> Dead | None:
    """What there is to go on with; None where all there was to do was ending it, which is done."""
    flow_run = _flow_run(client, some_id, run)
    run = run or _run_of(flow_run)
    if run.status.is_finished and run.status is not ExecutionStatus.COMPLETED:
        _end_what_is_left(flow_run, run, sure, say)
        raise is_over(run)
    snapshot = load_snapshot(_snapshot_id(run))
    orchestrator = load_stack(snapshot)[1]
    plan = orchestrator.plan(snapshot)
    if flow_run.state is not None and flow_run.state.is_cancelled() and not run.status.is_finished:
        _check_process(flow_run, run, plan, sure)
        _carry_out_the_cancel(flow_run, run, orchestrator, say)
        return None
    _check_state(flow_run, run.id)
    _check_process(flow_run, run, plan, sure)
    return Dead(flow_run, run, plan)


def _carry_out_the_cancel(
    flow_run: FlowRun, run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator, say: Callable[[str], None]
) -> None:
    """End what a flow left that Prefect calls Cancelled already: it died before it had stopped its run."""
    orphans.end(run, orphans.gone(run, "It died before it had stopped the run"), stopped=True)
    end_sandboxes(run, orchestrator)
    close_flow_run(flow_run, run.id, ExecutionStatus.STOPPED, "The run was stopped.")
    say(f"Flow run {flow_run.name} ({flow_run.id}) was cancelled: its run is stopped now, its sandboxes have ended.")


def _end_what_is_left(flow_run: FlowRun, run: PipelineRunResponse, sure: bool, say: Callable[[str], None]) -> None:
    """End on all sides what a flow left whose run has ended without it: nothing goes on with that any more.

    Does nothing where its process is or may be alive, or comes back by itself; nor where steps may still run which the
    run's failure mode lets come to their end.
    """
    state = flow_run.state
    if run.snapshot is None or state is None or state.is_scheduled() or state.is_paused():
        return
    if state.is_final() and not state.is_crashed():
        return
    snapshot = load_snapshot(_snapshot_id(run))
    stack, orchestrator = load_stack(snapshot)
    plan, sign = orchestrator.plan(snapshot), signs_of_life.last_sign(run)
    if alive_here(flow_run, sign):
        return
    if not sure and doubt_of_death(flow_run, sign, plan.orphan_timeout, datetime.now(timezone.utc)):
        return
    spared = run.status is ExecutionStatus.FAILED and plan.failure_mode is not FailureMode.FAIL_FAST
    if spared and step_runs.some_run(run) and not nothing_runs(run, plan, stack, orchestrator.config):
        say(
            f"Steps of this run still run. They have {plan.orphan_timeout:.0f} s from the death of their flow to come "
            "to their end; type this again then to end the flow run in Prefect too."
        )
        return
    orphans.end(run, orphans.gone(run, "It died before the run had ended"))
    end_sandboxes(run, orchestrator)
    because = f"ZenML's run is {run.status.value}, and the process of this flow run is gone."
    close_flow_run(flow_run, run.id, run.status, because)
    say(f"Flow run {flow_run.name} ({flow_run.id}) has ended as its run has: its process is gone.")


def _flow_run(client: SyncPrefectClient, some_id: UUID, run: PipelineRunResponse | None) -> FlowRun:
    if run is not None and run.orchestrator_run_id is None:
        raise RunNotPossible(f"run_id={run.id}: no flow run works on this run. Start a new one.")
    flow_run_id = UUID(run.orchestrator_run_id) if run is not None and run.orchestrator_run_id else some_id
    try:
        return client.read_flow_run(flow_run_id)
    except ObjectNotFound:
        if run is not None:
            raise RunNotPossible(
                f"run_id={run.id}: its flow run {flow_run_id} was deleted in Prefect, or is in another Prefect. "
                f"Check `prefect config view`; to run its other steps anew: {how_to_replay(run.id)}."
            ) from None
        raise RunNotPossible(
            f"{some_id} is neither a run of this ZenML server nor a flow run of this Prefect. Check `zenml status` and "
            "`prefect config view`; ids are in `zenml pipeline runs list` and `prefect flow-run ls`."
        ) from None


def _run_of(flow_run: FlowRun) -> PipelineRunResponse:
    run_id = flow_run.parameters.get(names.PARAMETER_RUN_ID) or names.run_id_of_tags(flow_run.tags)
    snapshot_id = flow_run.parameters.get(names.PARAMETER_SNAPSHOT_ID)
    if run_id:
        found = _zenml_run(UUID(str(run_id)))
    else:
        # Prefect may not have taken the tag that says it.
        found = own_run(UUID(str(snapshot_id)), None, str(flow_run.id)) if snapshot_id else None
    if found is None:
        raise RunNotPossible(
            f"flow run {flow_run.id}: no run of this ZenML server belongs to it, so there is nothing to go on with. "
            f"`prefect flow-run retry {flow_run.id}` begins it anew."
        )
    return found


def _check_state(flow_run: FlowRun, run_id: UUID) -> None:
    state = flow_run.state
    if state is None or state.is_crashed() or state.is_failed():
        return
    # One without a deployment waits for nobody: `zenml pipeline runs resume` has died over it, or is about to begin.
    waits_for_a_worker = state.is_scheduled() and flow_run.deployment_id is not None
    if not (state.is_final() or waits_for_a_worker or state.is_paused()):
        return
    if state.is_paused():
        raise RunNotPossible(
            f"flow run {flow_run.id} is {state.name}: its ZenML run waits for an answer. When it has one: "
            f"`zenml pipeline runs resume {run_id}`."
        )
    if waits_for_a_worker:
        raise RunNotPossible(
            f"flow run {flow_run.id} is {state.name} already: it waits for a worker. `prefect worker start --pool "
            f"{flow_run.work_pool_name or '<pool>'}` starts one."
        )
    raise RunNotPossible(f"flow run {flow_run.id} is {state.name}: there is nothing to go on with.")


def _check_process(flow_run: FlowRun, run: PipelineRunResponse, plan: Plan, sure: bool) -> None:
    """Raise ``RunNotPossible`` if the process of a flow run is alive, or may be as far as anybody can tell."""
    sign = signs_of_life.last_sign(run)
    if process := alive_here(flow_run, sign):
        raise RunNotPossible(
            f"flow run {flow_run.id} is alive: its process, {process}, is on this machine. To stop the run: "
            f"`zenml pipeline runs stop {run.id}`."
        )
    if not sure and (doubt := doubt_of_death(flow_run, sign, plan.orphan_timeout, datetime.now(timezone.utc))):
        raise RunNotPossible(f"flow run {flow_run.id} may be alive: {doubt}: two of them would run steps twice.")

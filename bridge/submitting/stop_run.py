"""``zenml pipeline runs stop``: asks the flow that works on a run to end it, or ends it where no flow does."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse
from zenml.stack import Stack

from bridge.cleanup import lease, signs_of_life
from bridge.flow_run import whereabouts
from bridge.flow_run.flow_process import alive_here, doubt_of_death, waits
from bridge.flow_run.left_open import close_flow_run
from bridge.flow_run.open_run import load_snapshot, load_stack
from bridge.flow_run.run import runner_of, sandboxes_of
from bridge.own_loop import on_own_loop
from bridge.plan import Plan
from bridge.prefect_side.prefect_api import prefect_api
from bridge.settings import RunnerConfig
from bridge.step_operators.operated_end import end_operated, may_be_operated
from bridge.submitting.deleted import doubt_of_deletion, is_fresh, orphan_timeout_of
from bridge.submitting.status import read_flow_run
from bridge.zenml_side import step_runs
from bridge.zenml_side.run_status import end_run

if TYPE_CHECKING:
    from bridge.orchestrator import ModalPrefectOrchestrator

_REASON = "It was stopped in ZenML."

_logger = logging.getLogger(__name__)


def stop(run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator, *, graceful: bool) -> None:
    """Stop a run that ZenML has made STOPPING already.

    A flow that is at work sees that by itself and drains; ``graceful`` leaves it at that, else its flow run is
    cancelled, which it sees as well. Where the flow never began, waits to go on, was deleted or has died, whatever
    Prefect calls it, what it left is ended here. So is it where another Prefect may have the flow run, but for a
    ``graceful`` stop of a flow that may be at work: that has seen it in ZenML.

    Raises ``PrefectUnavailable``; ``RunnerUnavailable`` if sandboxes may be left.
    """
    flow_run = read_flow_run(run)
    if _at_work(flow_run) and not _is_dead(flow_run, run, orchestrator):
        if not graceful:
            _cancel(flow_run, at_work=True)
        return
    if flow_run is None and graceful and (doubt := _may_be_at_work_elsewhere(run, orchestrator)):
        _logger.warning(
            "%s: is it another Prefect (`prefect config view`)? The run is left to its flow, which sees in ZenML that "
            "it is to stop. If its process is gone, `modal-prefect sweep --yes` ends the run once its lease is over.",
            doubt,
        )
        return
    # From here on a flow that is about to begin is refused by Prefect.
    _cancel(flow_run, at_work=False)
    if flow_run is None or flow_run.start_time is not None:
        end_sandboxes(run, orchestrator)
    step_runs.stop_left(run)
    end_run(run, failures={}, stopped=True)
    if (left := read_flow_run(run)) is not None:
        close_flow_run(left, run.id, ExecutionStatus.STOPPED, _REASON)


def _at_work(flow_run: FlowRun | None) -> bool:
    """Whether a process carries out the flow, as far as Prefect knows."""
    state = flow_run.state if flow_run is not None else None
    if flow_run is None or state is None or state.is_final() or state.is_paused() or waits(state):
        return False
    # A flow that waits to be retried in its process is Scheduled too, but it began.
    return flow_run.start_time is not None or state.is_running()


def _may_be_at_work_elsewhere(run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator) -> str:
    """Say why a flow may be at work whose flow run this Prefect doesn't know; "" if that is out of the question."""
    sign = signs_of_life.last_sign(Client().zen_store.get_run(run.id))
    if not is_fresh(sign, orphan_timeout_of(run, orchestrator)):
        return ""
    return doubt_of_deletion(run, orchestrator) if whereabouts.is_there(lease.signer(sign)[0]) is not False else ""


def _is_dead(flow_run: FlowRun | None, run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator) -> bool:
    """Whether the process of a flow run is gone for certain that Prefect calls Running, Cancelling or AwaitingRetry."""
    if flow_run is None or flow_run.state is None or run.snapshot is None:
        return False
    if flow_run.state.is_pending():  # a process is about to begin
        return False
    sign = signs_of_life.last_sign(Client().zen_store.get_run(run.id))
    doubt = doubt_of_death(flow_run, sign, orphan_timeout_of(run, orchestrator), datetime.now(timezone.utc))
    return not doubt and not alive_here(flow_run, sign)


def _cancel(flow_run: FlowRun | None, *, at_work: bool) -> None:
    if flow_run is None or flow_run.state is None:
        return
    state = flow_run.state
    if state.is_completed() or state.is_cancelled() or state.is_failed() or (at_work and state.is_cancelling()):
        return
    with prefect_api() as client:
        try:
            if at_work:
                client.set_flow_run_state(flow_run.id, Cancelling(message=_REASON))
            else:
                client.set_flow_run_state(flow_run.id, Cancelled(message=_REASON), force=True)
        except ObjectNotFound:
            return


def end_sandboxes(run: PipelineRunResponse, orchestrator: ModalPrefectOrchestrator) -> None:
    """End all sandboxes of a run on which no flow works any more. Raises ``RunnerUnavailable``."""
    if run.snapshot is None:
        return
    snapshot = load_snapshot(UUID(str(run.snapshot.id)))
    stack, _ = load_stack(snapshot)
    plan = orchestrator.plan(snapshot)

    async def end() -> None:
        async with runner_of(orchestrator.config, stack, plan.create_rate) as runner:
            for sandbox in await sandboxes_of(str(run.id), plan, runner):
                await sandbox.terminate()
        await end_operated(str(run.id), snapshot, stack)

    on_own_loop(end)


def nothing_runs(run: PipelineRunResponse, plan: Plan, stack: Stack, config: RunnerConfig) -> bool:
    """Whether certainly no sandbox of a run runs any more. Raises ``RunnerUnavailable``.

    It isn't certain where they are processes of a machine, which may be another one, or a step operator's.
    """
    if config.runner == "process" or may_be_operated(plan, stack):
        return False

    async def is_empty() -> bool:
        async with runner_of(config, stack, plan.create_rate) as runner:
            return not await sandboxes_of(str(run.id), plan, runner)

    return on_own_loop(is_empty)

"""Ending in ZenML what nobody works on any more: the same words whether a sandbox, a person or a schedule says them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import ExceptionInfo, PipelineRunResponse
from zenml.orchestrators.publish_utils import publish_failed_pipeline_run

from bridge.errors import how_to_replay
from bridge.flow_run.outcome import Diagnosis
from bridge.zenml_side import step_runs
from bridge.zenml_side.run_status import begin_stop, end_run, status_of


def gone(run: PipelineRunResponse, detail: str) -> Diagnosis:
    """Say that the flow of a run is gone; ``detail`` is how one knows."""
    return Diagnosis("The flow of this run is gone", detail, f"Go on where it stopped with {how_to_replay(run.id)}")


def caller_gone(detail: str) -> Diagnosis:
    """Say that whoever called the step operator is gone; ``detail`` is how one knows."""
    return Diagnosis("Whoever called the step operator for this step is gone", detail, "Run the pipeline again")


def end_step_run(step_run_id: UUID, why: Diagnosis) -> None:
    """End a step run of a step operator on which nobody waits, if it hasn't ended: failed, or stopped if it was to be.

    Raises ``KeyError`` if it was deleted.
    """
    status = Client().zen_store.get_run_step(step_run_id).status
    if status is ExecutionStatus.STOPPING:
        step_runs.record_stopped(step_run_id)
    elif not status.is_finished and status is not ExecutionStatus.RETRYING:
        step_runs.fail_step_run(step_run_id, why)


def end(
    run: PipelineRunResponse, why: Diagnosis, running: Collection[str] | None = None, *, stopped: bool = False
) -> None:
    """End a run without a flow, and its steps and child runs with it.

    It becomes stopped where ``stopped`` says so or it was being stopped anyway, else failed; ZenML shows why. What has
    ended stays as it is, and a run that was deleted is let be. ``running`` names the steps on which nobody works for
    certain; None means all.
    """
    status = status_of(run)
    if status is None:
        return
    if stopped or status in (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED):
        # First, else a step that ends before its run is stopping would be tried again.
        because = str(replace(why, fix=""))  # for which there is no room
        begin_stop(run, because)
        step_runs.stop_left(run, running)
        end_run(run, failures={}, stopped=True, because=because)
        return
    step_runs.fail_left(run, why, running)
    for child in step_runs.family(run)[1:]:
        if not child.status.is_finished:  # it ends by what is published alone
            _publish(child, why)
    now = status_of(run)
    if status.is_finished or now is None or (now.is_finished and now is not ExecutionStatus.FAILED):
        return
    # Failed steps make it fail already, but don't say why.
    _publish(run, why)


def explain(run: PipelineRunResponse, why: Diagnosis) -> None:
    """Say once more why a run has failed, where something else was said since. Nothing if it ended otherwise."""
    if status_of(run) is ExecutionStatus.FAILED:
        _publish(run, why)


def _publish(run: PipelineRunResponse, why: Diagnosis) -> None:
    publish_failed_pipeline_run(run.id, exception_info=ExceptionInfo(traceback=str(why), message=str(why)))

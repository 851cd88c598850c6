"""The last word on a ZenML run.

ZenML computes the status of a static run from its steps (zenml/zen_stores/schemas/pipeline_run_schemas.py,
``_compute_static_pipeline_run_status``): STOPPED doesn't stick when it is published, STOPPING with every step
run finished becomes it; COMPLETED can't be forced while a step has no run; FAILED always sticks. The status of a
dynamic run is the one that was published last.
"""

from __future__ import annotations

from collections.abc import Mapping

from zenml.client import Client
from zenml.enums import ExecutionStatus, StoreType
from zenml.exceptions import IllegalOperationError
from zenml.models import ExceptionInfo, PipelineRunResponse, PipelineRunUpdate
from zenml.orchestrators.publish_utils import (
    publish_failed_pipeline_run,
    publish_pipeline_run_status_update,
)

from bridge.zenml_side import step_runs

_STOPPED = "Stopped"
_REASON_LENGTH = 255
"""How long the reason of a status may be: ZenML's column is no wider on MySQL."""


def status_of(run: PipelineRunResponse) -> ExecutionStatus | None:
    """Return the run's status as it is now, None if the run was deleted."""
    try:
        return Client().get_pipeline_run(run.id, hydrate=False, project=run.project_id).status
    except KeyError:
        return None


def bind_run(run: PipelineRunResponse, flow_run_id: str) -> None:
    """Write down which flow run works on a run. ZenML takes it once, before the first step.

    Raises ``IllegalOperationError`` if another flow run does.
    """
    client = Client()
    try:
        client.zen_store.update_run(run.id, PipelineRunUpdate(orchestrator_run_id=flow_run_id))
    except IllegalOperationError:
        # A quick worker has written it already.
        if client.get_pipeline_run(run.id, project=run.project_id).orchestrator_run_id != flow_run_id:
            raise


def begin_stop(run: PipelineRunResponse, because: str = _STOPPED) -> None:
    """Prepare ZenML for the end of the run's sandboxes: then a step that dies isn't retried and fails nothing.

    A run that hasn't ended becomes STOPPING; ``because`` is the reason that ZenML shows with its status. The step runs
    that still run are STOPPED, before their processes, which may have handlers of SIGTERM of their own, call them
    failed.
    """
    status = status_of(run)
    if status is None:
        return
    if not status.is_finished and status is not ExecutionStatus.STOPPING:
        _publish_stopping(run, because)
    step_runs.stop_running(run)


def interrupt_steps(run: PipelineRunResponse) -> None:
    """Let the heartbeats of a stopping run's steps interrupt them where they don't by themselves.

    A heartbeat brings back the run's status from a server only. From a local database it brings back its step run's
    (zenml/zen_stores/sql_zen_store.py, ``update_step_heartbeat``), so the step runs become STOPPING there.
    """
    if Client().zen_store.type is StoreType.SQL:
        step_runs.begin_to_stop(run)


def end_run(run: PipelineRunResponse, *, failures: Mapping[str, str], stopped: bool, because: str = _STOPPED) -> None:
    """Make ZenML's run end as the flow run does, and its child runs with it: failed, stopped or, by its steps alone,
    completed.

    A run that failed before it was stopped says failed already, and stays so. Does nothing if it was deleted.

    Step runs that still run are stopped: nobody works on them any more. A process that was killed over its request for
    one is the reason; ZenML takes such a request in a run that has failed.

    Args:
        run: The run.
        failures: The failed steps and their diagnoses.
        stopped: Whether the run was stopped; steps that fail while it stops don't make it fail, as in ZenML.
        because: Why it was stopped, if it was.
    """
    if stopped or failures:
        for child in step_runs.family(run)[1:]:
            _end_run(child, failures, stopped, because)
    exists = _end_run(run, failures, stopped, because)
    if exists and (stopped or failures):
        step_runs.stop_running(run)


def _end_run(run: PipelineRunResponse, failures: Mapping[str, str], stopped: bool, because: str) -> bool:
    """Return whether ZenML still had the run."""
    status = status_of(run)
    if status is None:
        return False
    if status.is_finished:
        return True
    if stopped:
        _publish_stopping(run, because)
        if step_runs.is_dynamic(run):
            publish_pipeline_run_status_update(run.id, ExecutionStatus.STOPPED)
    elif failures:
        text = "\n".join(f"{step}: {diagnosis}" if step else diagnosis for step, diagnosis in failures.items())
        publish_failed_pipeline_run(run.id, exception_info=ExceptionInfo(traceback=text))
    else:
        # Of two steps that end at one moment ZenML may take each for not ended when it reckons with the other, and
        # leaves the run running for ever (seen in 2 of 25 runs). Asked for the end it reckons again, and alone.
        publish_pipeline_run_status_update(run.id, ExecutionStatus.COMPLETED)
    return True


def _publish_stopping(run: PipelineRunResponse, because: str) -> None:
    publish_pipeline_run_status_update(run.id, ExecutionStatus.STOPPING, status_reason=because[:_REASON_LENGTH])

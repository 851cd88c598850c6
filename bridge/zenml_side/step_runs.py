"""What ZenML's step runs say and are told: small functions on ZenML's client, for the flow and for the host.

Project and stack are taken from the run and its snapshot, never from what is active in this process: a worker
has other defaults. All functions block; all may be called from any thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Sequence
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.exceptions import EntityExistsError, IllegalOperationError
from zenml.models import (
    ExceptionInfo,
    PipelineRunResponse,
    StepRunRequest,
    StepRunResponse,
    StepRunUpdate,
)
from zenml.utils.pagination_utils import depaginate
from zenml.utils.time_utils import utc_now

from bridge.flow_run.outcome import Diagnosis, Reported, StepRecord
from bridge.names import METADATA_SANDBOX_ID
from bridge.watching.board import Seen

_logger = logging.getLogger(__name__)

_REPORTED = {
    ExecutionStatus.COMPLETED: Reported.SUCCEEDED,
    ExecutionStatus.CACHED: Reported.CACHED,
    ExecutionStatus.SKIPPED: Reported.SKIPPED,
    ExecutionStatus.FAILED: Reported.FAILED,
    ExecutionStatus.RETRYING: Reported.RETRYING,
    ExecutionStatus.RETRIED: Reported.RETRYING,
    ExecutionStatus.STOPPED: Reported.STOPPED,
    ExecutionStatus.CANCELLED: Reported.STOPPED,
}
"""Every other status means that the step run hasn't ended."""

_STILL_RUNS = "oneof:" + json.dumps([ExecutionStatus.RUNNING.value, ExecutionStatus.STOPPING.value])
_LONGEST_FILTER = 4000
"""Characters of names in one query: a REST server answers 414 to a request line of more than about 8,000."""
_PAGE = 1000


def latest(run: PipelineRunResponse, steps: Sequence[str]) -> dict[str, StepRecord]:
    """Return the record of the newest step run of each of ``steps``; steps without one are left out.

    One query for as many names as fit into a request, and for one run one query for the exceptions of those
    that failed.
    """
    found: dict[str, StepRunResponse] = {}
    for names in _batches(steps):
        for step_run in list_of(run, name=_one_of(names)):
            known = found.get(step_run.name)
            if known is None or known.version < step_run.version:
                found[step_run.name] = step_run
    failed = [step_run for step_run in found.values() if _may_have_exception(step_run.status)]
    exceptions = _exceptions(run, failed)
    return {
        name: StepRecord(
            reported=reported(step_run),
            step_run_id=str(step_run.id),
            version=step_run.version,
            exception=exceptions.get(step_run.id),
        )
        for name, step_run in found.items()
    }


def record_of(step_run_id: UUID) -> StepRecord:
    """Return the record of one step run, which need not be its step's newest: whoever retries may be quick."""
    step_run = Client().zen_store.get_run_step(step_run_id, hydrate=True)
    said = step_run.exception_info if _may_have_exception(step_run.status) else None
    return StepRecord(
        reported=reported(step_run),
        step_run_id=str(step_run.id),
        version=step_run.version,
        exception=message_of(said) if said is not None else None,
    )


def reported(step_run: StepRunResponse) -> Reported:
    """What a step run says of its step."""
    return _REPORTED.get(step_run.status, Reported.RUNNING)


def _one_of(steps: Sequence[str]) -> str:
    """The filter for step runs of these names."""
    return "oneof:" + json.dumps(steps)


def _batches(steps: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    length = 0
    for step in steps:
        size = len(json.dumps(step)) + 2
        if batch and length + size > _LONGEST_FILTER:
            yield batch
            batch, length = [], 0
        batch.append(step)
        length += size
    if batch:
        yield batch


def list_of(run: PipelineRunResponse, *, hydrate: bool = False, **filters: str) -> list[StepRunResponse]:
    """Return the step runs of a run, the newest attempt of each step."""
    # ZenML marks an attempt RETRIED once the next one exists: without those, the newest is left.
    return depaginate(
        Client().list_run_steps,
        pipeline_run_id=run.id,
        project=run.project_id,
        exclude_retried=True,
        size=_PAGE,
        hydrate=hydrate,
        **filters,
    )


def is_dynamic(run: PipelineRunResponse) -> bool:
    """Whether it is a run of a dynamic pipeline: then its status is what is published, whatever its steps are."""
    return run.snapshot is not None and run.snapshot.is_dynamic


def family(run: PipelineRunResponse) -> list[PipelineRunResponse]:
    """Return a run and those of its child pipelines, of any depth: only dynamic pipelines have some.

    They share its flow run.
    """
    if run.orchestrator_run_id is None or not is_dynamic(run):
        return [run]
    found = depaginate(
        Client().list_pipeline_runs, orchestrator_run_id=run.orchestrator_run_id, project=run.project_id, size=_PAGE
    )
    return [run, *(other for other in found if other.id != run.id)]


def _may_have_exception(status: ExecutionStatus) -> bool:
    return status in (
        ExecutionStatus.FAILED,
        ExecutionStatus.RETRYING,
        ExecutionStatus.RETRIED,
        ExecutionStatus.STOPPED,
    )


def _exceptions(run: PipelineRunResponse, failed: Sequence[StepRunResponse]) -> dict[UUID, str]:
    if not failed:
        return {}
    messages: dict[UUID, str] = {}
    for names in _batches([step_run.name for step_run in failed]):
        for step_run in list_of(run, hydrate=True, name=_one_of(names)):
            if step_run.exception_info is not None:
                messages[step_run.id] = message_of(step_run.exception_info)
    return messages


def message_of(info: ExceptionInfo) -> str:
    """Return an exception in one line."""
    if info.message and info.source:
        return f"{info.source.rpartition('.')[2]}: {info.message}"
    return info.message or info.traceback.strip().rpartition("\n")[2]


def _said(diagnosis: Diagnosis) -> ExceptionInfo:
    return ExceptionInfo(traceback=str(diagnosis), message=str(diagnosis))


def record_failure(run: PipelineRunResponse, step: str, record: StepRecord, diagnosis: Diagnosis) -> None:
    """Tell ZenML that an attempt failed of which it knows nothing, or only that it runs.

    ``record`` is what it knows. ZenML makes a failure RETRYING by itself where the step may be tried again.
    Where ZenML takes no more of this run, because it has ended or the step has, nothing is recorded and the
    log says so.
    """
    try:
        if record.reported is Reported.RUNNING and record.step_run_id is not None:
            _publish(UUID(record.step_run_id), ExecutionStatus.FAILED, diagnosis)
        else:
            _create_failed(run, step, diagnosis)
    except (IllegalOperationError, EntityExistsError) as error:
        # A server that was away may have carried out the dead attempt's last request since `record` was read.
        begun = [one for one in list_of(run, name=_one_of([step])) if one.status is ExecutionStatus.RUNNING]
        for step_run in begun:
            fail_step_run(step_run.id, diagnosis)
        if not begun:
            _logger.info("ZenML takes no failure of step %s any more: %s", step, error)


def fail_step_run(step_run_id: UUID, diagnosis: Diagnosis) -> None:
    """Tell ZenML that a step run failed. Nothing if it has ended."""
    try:
        _publish(step_run_id, ExecutionStatus.FAILED, diagnosis)
    except IllegalOperationError as error:
        _logger.info("Step run %s isn't marked as failed: %s", step_run_id, error)


def explain_failure(step_run_id: UUID, diagnosis: Diagnosis) -> None:
    """Say of a failure that the step itself reported what came to it, above its own traceback. The status stays."""
    info, reported = _said(diagnosis), Client().zen_store.get_run_step(step_run_id, hydrate=True).exception_info
    if reported is not None:
        if reported.traceback.startswith(str(diagnosis)):
            return  # by an earlier process of the flow
        info.traceback = f"{diagnosis}\n\n{reported.traceback}"
        info.user_code_line = reported.user_code_line
    Client().zen_store.update_run_step(step_run_id, StepRunUpdate(exception_info=info))


def _create_failed(run: PipelineRunResponse, step: str, diagnosis: Diagnosis) -> StepRunResponse:
    now = utc_now()
    return Client().zen_store.create_run_step(
        StepRunRequest(
            name=step,
            pipeline_run_id=run.id,
            project=run.project_id,
            status=ExecutionStatus.FAILED,
            start_time=now,
            end_time=now,
            exception_info=_said(diagnosis),
        )
    )


def _publish(step_run_id: UUID, status: ExecutionStatus, diagnosis: Diagnosis | None) -> StepRunResponse:
    update = StepRunUpdate(
        status=status,
        end_time=utc_now(),
        exception_info=_said(diagnosis) if diagnosis is not None else None,
    )
    return Client().zen_store.update_run_step(step_run_id, update)


def record_stopped(step_run_id: UUID) -> None:
    """Tell ZenML that a step run which runs, or waits for a retry, was stopped. Nothing if it has ended.

    One that ZenML is cancelling, since its place in a resource pool was taken away, is cancelled: it can't be stopped.
    """
    try:
        _publish(step_run_id, ExecutionStatus.STOPPED, None)
    except IllegalOperationError as error:
        if Client().zen_store.get_run_step(step_run_id, hydrate=False).status is ExecutionStatus.CANCELLING:
            _record_cancelled(step_run_id)
        else:
            _logger.info("Step run %s isn't marked as stopped: %s", step_run_id, error)


def _record_cancelled(step_run_id: UUID) -> None:
    try:
        if _publish(step_run_id, ExecutionStatus.CANCELLED, None).status is ExecutionStatus.RETRYING:
            _publish(step_run_id, ExecutionStatus.STOPPED, None)  # whoever stops it doesn't try it again
    except IllegalOperationError as error:
        _logger.info("Step run %s isn't marked as cancelled: %s", step_run_id, error)


def overview(run: PipelineRunResponse, steps: Sequence[str] | None = None) -> list[Seen]:
    """Return the newest step run of every step that has one, with its times; one query for a thousand steps.

    Who names ``steps`` needs those alone, and gets no others where so many names fit into a request.
    """
    if steps is not None and not steps:
        return []
    batches = list(_batches(steps)) if steps is not None else []
    found = list_of(run, name=_one_of(batches[0])) if len(batches) == 1 else list_of(run)
    return [
        Seen(
            step=step_run.name,
            status=step_run.status.value,
            attempt=step_run.version,
            start=step_run.start_time,
            end=step_run.end_time,
            ended=step_run.status.is_finished,
            step_run=str(step_run.id),
        )
        for step_run in sorted(found, key=lambda step_run: step_run.version)
    ]


def every(run: PipelineRunResponse) -> Iterator[tuple[PipelineRunResponse, StepRunResponse]]:
    """Yield every step run of a run and of its children, each with its own run; those of earlier attempts first."""
    for member in family(run):
        found = depaginate(Client().list_run_steps, pipeline_run_id=member.id, project=member.project_id, size=_PAGE)
        for step_run in sorted(found, key=lambda step_run: step_run.version):
            yield member, step_run


def statuses(run: PipelineRunResponse) -> dict[UUID, ExecutionStatus]:
    """Return the status of every step run of a run and of its children, those of earlier attempts among them."""
    return {step_run.id: step_run.status for _, step_run in every(run)}


def sandbox_of(step_run_id: UUID) -> str:
    """Return the id of the sandbox in which a step run ran, as that said itself; "" if it never said."""
    metadata = Client().zen_store.get_run_step(step_run_id, hydrate=True).run_metadata
    return str(metadata.get(METADATA_SANDBOX_ID, ""))


def stop_running(run: PipelineRunResponse) -> None:
    """Tell ZenML that all step runs of a run which still run were stopped."""
    for member in family(run):
        for step_run in list_of(member, status=_STILL_RUNS):
            record_stopped(step_run.id)


def some_run(run: PipelineRunResponse) -> bool:
    """Whether steps of a run still run, as far as ZenML knows."""
    return any(list_of(member, status=_STILL_RUNS) for member in family(run))


def begin_to_stop(run: PipelineRunResponse) -> None:
    """Tell ZenML that all step runs of a run which still run are to stop: their processes end them."""
    running = ExecutionStatus.RUNNING.value
    for step_run in [step_run for member in family(run) for step_run in list_of(member, status=running)]:
        try:
            Client().zen_store.update_run_step(step_run.id, StepRunUpdate(status=ExecutionStatus.STOPPING))
        except IllegalOperationError as error:
            _logger.info("Step run %s isn't interrupted: %s", step_run.id, error)


_GIVEN_UP = Diagnosis("The step isn't tried again", "The run gave up on it before its retries were used")


def close_retries(run: PipelineRunResponse, step: str) -> None:
    """End a step that ZenML believes will be tried again. Does nothing to any other.

    A RETRYING step run stays so for ever, also when its run is forced to an end; published FAILED it becomes
    RETRYING again. So the attempts that won't happen are recorded as failed step runs, the last of which
    stays FAILED. Where the run takes no new step runs, it having failed or being stopped, and in a dynamic pipeline,
    the step run is published STOPPED, which sticks.
    """
    record = latest(run, [step]).get(step)
    while record is not None and record.reported is Reported.RETRYING:
        try:
            # A step run of a dynamic pipeline needs the step's configuration, which only its function can make.
            created = None if is_dynamic(run) else _create_failed(run, step, _GIVEN_UP)
        except IllegalOperationError:
            created = None
        except EntityExistsError as error:
            _logger.info("Somebody else ended step %s: %s", step, error)
            return
        if created is None:
            record_stopped(UUID(record.step_run_id or ""))
            return
        record = StepRecord(reported(created), str(created.id), created.version)


_OVER = (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED, ExecutionStatus.FAILED)


def stop_retrying(run: PipelineRunResponse, step: str) -> None:
    """End a step that ZenML believes will be tried again, and that somebody stopped, as stopped.

    Not by :func:`close_retries`: a run that failed under CONTINUE_ON_FAILURE takes new step runs also while it is being
    stopped, and would call the step failed. In a run that ZenML doesn't know to be over it does that all the same: a
    stopped step would stop the run. Does nothing to any other step.
    """
    record = latest(run, [step]).get(step)
    if record is None or record.reported is not Reported.RETRYING or not record.step_run_id:
        return
    if Client().get_pipeline_run(run.id, hydrate=False).status in _OVER:
        record_stopped(UUID(record.step_run_id))
    else:
        close_retries(run, step)


def fail_left(run: PipelineRunResponse, diagnosis: Diagnosis, running: Collection[str] | None = None) -> None:
    """End the step runs of a run that nobody works on any more as failed: none is tried again.

    Those that run are told why they failed; ``running`` names the steps that may be among them, None means all. Those
    that wait for a retry are closed.
    """
    for member, step_run in _left(run, running):
        if step_run.status is not ExecutionStatus.RETRYING:
            try:
                _publish(step_run.id, ExecutionStatus.FAILED, diagnosis)
            except IllegalOperationError as error:
                _logger.info("Step %s has ended by itself: %s", step_run.name, error)
        close_retries(member, step_run.name)


def stop_left(run: PipelineRunResponse, running: Collection[str] | None = None) -> None:
    """End the step runs of a run that nobody works on any more as stopped; ``running`` as in :func:`fail_left`."""
    for _, step_run in _left(run, running):
        record_stopped(step_run.id)


def _left(
    run: PipelineRunResponse, running: Collection[str] | None
) -> list[tuple[PipelineRunResponse, StepRunResponse]]:
    return [
        (member, step_run)
        for member in family(run)
        for step_run in list_of(member)
        if not step_run.status.is_finished
        and (step_run.status is ExecutionStatus.RETRYING or running is None or step_run.name in running)
    ]

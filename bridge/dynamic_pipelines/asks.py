"""What the orchestration of a dynamic pipeline asks of its flow, and what it is answered: both through ZenML.

The function of a dynamic pipeline runs in a sandbox that has neither Modal's nor Prefect's credentials. An isolated
step is a step run that says that it wants a sandbox (:func:`ask`); the flow, which sees it (:func:`asked`), starts it.
What became of it is the step run's status, which its own process or the flow publishes (:func:`status_of`). The words
outlive both programs, so either may die and be followed by another.

Imports ZenML, neither Modal nor Prefect, and nothing that a sandbox may lack. All functions block.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse, StepRunResponse
from zenml.orchestrators.publish_utils import publish_step_run_metadata

from bridge import names
from bridge.watching.board import Seen
from bridge.zenml_side import step_runs
from bridge.zenml_side.sandbox_metadata import sandbox_metadata
from bridge.zenml_side.zenml_away import couldnt_ask

MOST_PAUSE_SECONDS = 3.0
"""Between two looks at a step that is waited for."""
_logger = logging.getLogger(__name__)

_SANDBOX = "sandbox"
_WAITED_FOR = (ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING, ExecutionStatus.RUNNING)
_OPEN = (*_WAITED_FOR, ExecutionStatus.STOPPING)
_LOOKED_AT = "oneof:" + json.dumps([status.value for status in (*_OPEN, ExecutionStatus.STOPPED)])

_ANSWERS = {
    ExecutionStatus.INITIALIZING: ExecutionStatus.PROVISIONING,
    ExecutionStatus.PROVISIONING: ExecutionStatus.PROVISIONING,
    ExecutionStatus.COMPLETED: ExecutionStatus.COMPLETED,
    ExecutionStatus.CACHED: ExecutionStatus.COMPLETED,
    ExecutionStatus.SKIPPED: ExecutionStatus.COMPLETED,
    ExecutionStatus.FAILED: ExecutionStatus.FAILED,
    ExecutionStatus.RETRYING: ExecutionStatus.FAILED,
    ExecutionStatus.RETRIED: ExecutionStatus.FAILED,
    ExecutionStatus.STOPPED: ExecutionStatus.STOPPED,
    ExecutionStatus.CANCELLED: ExecutionStatus.STOPPED,
}
"""ZenML knows five answers, and waits for ever on any other (zenml/execution/pipeline/dynamic/runner.py,
``_monitoring_loop``). What isn't here goes on, until its process or the flow gives it an end."""


@dataclass(frozen=True)
class Asked:
    """A step run that wants a sandbox, or wanted one and was stopped. ``step_run`` is hydrated."""

    run: PipelineRunResponse
    """Its run: that of the pipeline, or of a child pipeline."""
    step_run: StepRunResponse


def answer(status: ExecutionStatus) -> ExecutionStatus:
    """What ZenML is told of an isolated step run with this status."""
    return _ANSWERS.get(status, ExecutionStatus.RUNNING)


def ask(step_run_id: UUID, component_id: UUID) -> None:
    """Say that a step run wants a sandbox. ``component_id`` is the orchestrator's."""
    publish_step_run_metadata(step_run_id, {component_id: {names.METADATA_ASKED: _SANDBOX}})


def see_to_it(step_run_id: UUID, component_id: UUID) -> bool:
    """See to it that somebody has asked for a step run that is waited for; False where it can't have a sandbox.

    ZenML waits for a step run that it has submitted; in a sandbox that follows another one, also for what was begun
    there. Where that sandbox was lost before it had asked, nobody else would. Raises what ZenML's store raises.
    """
    now = Client().zen_store.get_run_step(step_run_id, hydrate=True)
    if names.METADATA_ASKED in now.run_metadata or now.status not in _WAITED_FOR:
        return True
    if now.resource_request_id is not None and now.status is not ExecutionStatus.RUNNING:
        # It stood in line for a place in one of ZenML's resource pools, which is given up with who stood there
        # (zenml/orchestrators/step_launcher.py, `_wait_until_resources_acquired`).
        _logger.error("The sandbox in which step `%s` waited for a resource pool was lost.", now.name)
        return False
    _logger.warning("Nobody has asked for a sandbox for step `%s` yet: now somebody has.", now.name)
    ask(step_run_id, component_id)
    return True


def status_of(step_run: StepRunResponse) -> ExecutionStatus:
    """How an isolated step run is: PROVISIONING, RUNNING, COMPLETED, FAILED or STOPPED.

    Raises what ZenML's store raises, rather than guess.
    """
    is_command = step_run.config.command is not None
    now = Client().zen_store.get_run_step(step_run.id, hydrate=is_command)
    if is_command and now.status is ExecutionStatus.RUNNING:
        # Nothing in its sandbox tells ZenML how it ended, and who asks here is who publishes it.
        end = now.run_metadata.get(names.METADATA_COMMAND_END)
        return ExecutionStatus(str(end)) if end is not None else ExecutionStatus.RUNNING
    return answer(now.status)


def wait_for(how_it_is: Callable[[], ExecutionStatus]) -> ExecutionStatus:
    """Wait for the end of an isolated step run: COMPLETED, FAILED or STOPPED. A ZenML that is away is waited for."""
    pause = MOST_PAUSE_SECONDS / 8
    while True:
        try:
            status = how_it_is()
        except Exception as error:
            if not couldnt_ask(error):
                raise
            _logger.warning("ZenML can't be reached (%s); asking again.", type(error).__name__)
        else:
            if status not in (ExecutionStatus.PROVISIONING, ExecutionStatus.RUNNING):
                return status
        time.sleep(pause)  # nothing tells of the end of a step run
        pause = min(2 * pause, MOST_PAUSE_SECONDS)


def tell_command_end(step_run_id: UUID, component_id: UUID) -> None:
    """Say that the command of a step run has succeeded; failures are statuses of step runs."""
    publish_step_run_metadata(
        step_run_id, {component_id: {names.METADATA_COMMAND_END: ExecutionStatus.COMPLETED.value}}
    )


def tell_sandbox(step_run_id: UUID, component_id: UUID, sandbox_id: str, url: str | None, task_run_id: UUID) -> None:
    """Say where a command runs: nothing in its sandbox can."""
    metadata = {**sandbox_metadata(sandbox_id, url), names.METADATA_TASK_RUN_ID: str(task_run_id)}
    publish_step_run_metadata(step_run_id, {component_id: metadata})


def title(run: PipelineRunResponse, step: str, attempt: int = 1) -> str:
    """The name of a step run for a person: its child pipeline in front, and which attempt it is."""
    child = f"{run.child_key}: " if run.child_key else ""
    return f"{child}{step}" + (f" (attempt {attempt})" if attempt > 1 else "")


def overview(run: PipelineRunResponse) -> list[Seen]:
    """Return the newest step run of every step that has one, of the run and its children, by their titles."""
    return [
        replace(seen, step=title(member, seen.step))
        for member in step_runs.family(run)
        for seen in step_runs.overview(member)
    ]


def asked(run: PipelineRunResponse, done_with: set[UUID], known: Collection[UUID]) -> list[Asked]:
    """Return the step runs of a run, and of its children, that want a sandbox or were stopped meanwhile.

    ``known`` step runs are returned only where they were stopped. Those that will never want one are added to
    ``done_with`` and not looked at again; so are children that have ended, since what was stopped just before was seen.
    """
    members = [member for member in step_runs.family(run) if not (member.id in done_with and _has_ended(member, run))]
    found = [each for member in members for each in _asked(member, done_with, known, ended=_has_ended(member, run))]
    # Not before all of it was read: whoever asks, asks again where ZenML couldn't be reached.
    done_with.update(member.id for member in members if _has_ended(member, run))
    return found


def _has_ended(member: PipelineRunResponse, run: PipelineRunResponse) -> bool:
    return member.id != run.id and member.status.is_finished


def _asked(run: PipelineRunResponse, done_with: set[UUID], known: Collection[UUID], *, ended: bool) -> Iterator[Asked]:
    for step_run in step_runs.list_of(run, status=_LOOKED_AT):
        stopped = step_run.status is ExecutionStatus.STOPPED
        if step_run.id in done_with or stopped != (step_run.id in known):
            continue
        if stopped:
            yield Asked(run, step_run)
            continue
        if ended:
            continue  # its function waits for nothing any more
        whole = Client().zen_store.get_run_step(step_run.id, hydrate=True)
        if names.METADATA_ASKED in whole.run_metadata:
            yield Asked(run, whole)
        elif _runs_inline(whole):
            done_with.add(step_run.id)


def _runs_inline(step_run: StepRunResponse) -> bool:
    """Whether a step run that hasn't asked for a sandbox never will, for sure."""
    if step_run.status is not ExecutionStatus.RUNNING or step_run.config.command is not None:
        return False  # commands run, as far as ZenML says, from their first moment on
    # An isolated one runs once it has a sandbox; or, where ZenML's resource pools have a place for it, before it asks
    # for one (zenml/orchestrators/step_launcher.py, `_wait_until_resources_acquired`).
    return step_run.resource_request_id is None

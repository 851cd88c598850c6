"""Waiting for a flow run that a worker carries out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import tenacity
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from bridge.errors import PrefectUnavailable, RunFailed, RunStopped
from bridge.prefect_side.prefect_api import prefect_api
from bridge.submitting.work_pool import nobody_works
from bridge.watching import terminal
from bridge.watching.artifacts import ROWS_A_SECOND, pages
from bridge.watching.followed import FollowedSteps
from bridge.zenml_side.run_status import end_run, status_of

POLL_SECONDS = 2.0
REMIND_SECONDS = 30.0
PATIENCE_SECONDS = 600.0
"""How long Prefect's API may be away while somebody waits. The run itself doesn't depend on it."""

_logger = logging.getLogger(__name__)
_NOT_BEGUN = (ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING)


def how_to_stop(run: PipelineRunResponse, flow_run_id: UUID) -> str:
    """Return what to type to stop a run from elsewhere."""
    return f"`zenml pipeline runs stop {run.id}`, or `prefect flow-run cancel {flow_run_id}`"


@dataclass
class Waiting:
    """Waits for one flow run in a work pool, and says what it waits for: of its steps in a terminal what they are
    doing, elsewhere a line for each change. ``sleep`` and ``clock`` are in seconds."""

    run: PipelineRunResponse
    flow_run_id: UUID
    work_pool: str
    steps: FollowedSteps
    say: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _look_at: float = 0.0

    def until_done(self) -> None:
        """Wait for the end.

        Raises ``RunFailed`` or ``RunStopped`` unless the run completed, ``PrefectUnavailable`` if the API is away for
        longer than ``PATIENCE_SECONDS``, and ``KeyboardInterrupt`` as it comes, which leaves the run alone.
        """
        try:
            flow_run = self._watch()
        except KeyboardInterrupt:
            self.say(f"The run goes on without this process. To stop it: {how_to_stop(self.run, self.flow_run_id)}.")
            raise
        self._settle(flow_run)
        if flow_run is None:
            raise RunStopped(f"The flow run {self.flow_run_id} was deleted in Prefect.")
        _raise_for(flow_run)

    def _watch(self) -> FlowRun | None:
        shown = ""
        in_terminal = terminal.watch(self.steps, self.run.name, lambda: pages(self.flow_run_id, self.run))
        remind_at = self.clock()
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(PrefectUnavailable),
            wait=tenacity.wait_exponential(max=15),
            stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
            before_sleep=tenacity.before_sleep_log(_logger, logging.WARNING),
            sleep=self.sleep,
            reraise=True,
        )
        while True:
            flow_run = patiently(self._read)
            for line in [] if in_terminal else self.steps.news():
                self.say(line)
            if flow_run is None or flow_run.state is None or flow_run.state.is_final() or flow_run.state.is_paused():
                return flow_run
            if flow_run.state.name != shown:
                shown = flow_run.state.name or ""
                self.say(f"Flow run {flow_run.name}: {shown}")
            if flow_run.start_time is None and self.clock() >= remind_at:
                remind_at = self.clock() + REMIND_SECONDS
                if warning := patiently(self._nobody_works):
                    _logger.warning("%s", warning)
            self.sleep(POLL_SECONDS)

    def _read(self) -> FlowRun | None:
        with prefect_api() as client:
            try:
                flow_run = client.read_flow_run(self.flow_run_id)
            except ObjectNotFound:
                return None
            state = flow_run.state
            over = state is not None and (state.is_final() or state.is_paused())
            if flow_run.start_time is not None and (over or self.clock() >= self._look_at):
                self.steps.read(client)
                # A table of thousands of steps is made anew less often, and costs more to read.
                self._look_at = self.clock() + len(self.steps.table()) / ROWS_A_SECOND
            return flow_run

    def _nobody_works(self) -> str | None:
        with prefect_api() as client:
            return nobody_works(client, self.work_pool)

    def _settle(self, flow_run: FlowRun | None) -> None:
        """End a ZenML run whose flow ended before it could look at it: nobody else would."""
        if status_of(self.run) not in _NOT_BEGUN:
            return
        state = flow_run.state if flow_run is not None else None
        if state is None or state.is_cancelled():
            end_run(self.run, failures={}, stopped=True)
        elif state.is_failed():
            end_run(self.run, failures={"": state.message or "The flow run failed"}, stopped=False)


def raise_for(state: State[object]) -> None:
    """Raise the error that a final state of a flow run stands for; nothing for a completed one, nor for one that is
    paused and goes on later."""
    if state.is_completed() or state.is_paused():
        return
    if state.is_cancelled() or state.is_cancelling():
        raise RunStopped(state.message or "The run was stopped.")
    raise RunFailed(state.message or f"The flow run ended as {state.name}.")


def _raise_for(flow_run: FlowRun) -> None:
    state = flow_run.state
    if state is None:
        raise RunFailed(f"The flow run {flow_run.id} has no state.")
    if not state.is_crashed():
        raise_for(state)
        return
    begun = (
        ""
        if flow_run.start_time
        else (" The flow never began: often the worker's environment lacks this package, or can't reach Prefect.")
    )
    raise RunFailed(
        f"The flow run crashed: {state.message or 'no reason is known'}.{begun} The logs of the flow run and of its "
        f"worker say more. To go on with the run: `modal-prefect resume {flow_run.id}`."
    )

"""Prefect events of each step's life, for automations: ``docs/how-to/automations.md`` lists them.

They say what Prefect's own events of task runs don't: which attempt, on which machine, and that a sandbox was lost.
They come from the flow, in both modes.
"""

from __future__ import annotations

import logging

from prefect.events import emit_event

from bridge import names
from bridge.flow_run.run import Run
from bridge.watching.step_told import About

MOST_CHARACTERS = 2000
"""Of what happened: an event has a bound of its own, and isn't the place for a log."""

_logger = logging.getLogger(__name__)


class StepEvents:
    """Emits the events of one run's steps: a :class:`bridge.watching.step_told.Listener`.

    Prefect sends them behind the caller's back, and drops them while its API is away: a run is worth more.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._silent = False

    def started(self, step: About, attempt: int, sandbox: str) -> None:
        """An attempt at the step has its sandbox."""
        self._emit(names.EVENT_STARTED, step, attempt, sandbox=sandbox)

    def retried(self, step: About, attempt: int) -> None:
        """Another attempt begins."""
        self._emit(names.EVENT_RETRIED, step, attempt)

    def lost(self, step: About, attempt: int, what: str) -> None:
        """Its sandbox was lost, or couldn't be had."""
        self._emit(names.EVENT_LOST, step, attempt, why=what)

    def failed(self, step: About, attempt: int, why: str) -> None:
        """An attempt failed."""
        self._emit(names.EVENT_FAILED, step, attempt, why=why)

    def finished(self, step: About, attempt: int, state: str) -> None:
        """The step succeeded."""
        self._emit(names.EVENT_FINISHED, step, attempt, state=state.capitalize())

    def _emit(self, event: str, step: About, attempt: int, **more: str) -> None:
        try:
            emit_event(
                event,
                resource=self._resource(step),
                related=self._related(step),
                payload={"attempt": attempt, **{key: value[:MOST_CHARACTERS] for key, value in more.items()}},
            )
        except Exception as error:
            # Best effort by intent, said once: an event never fails a run.
            if not self._silent:
                _logger.warning("Prefect doesn't get the events of this run: %s: %s", type(error).__name__, error)
            self._silent = True

    def _resource(self, about: About) -> dict[str, str]:
        run = self._run
        return {
            "prefect.resource.id": names.step_resource(run.id, about.step),
            "prefect.resource.name": about.step,
            names.SPAN_STEP: about.step,
            names.SPAN_PIPELINE: run.plan.pipeline,
            names.SPAN_RUN_ID: run.id,
            names.LABEL_STACK: run.plan.stack,
            **({names.LABEL_GPU: about.gpu} if about.gpu else {}),
        }

    def _related(self, about: About) -> list[dict[str, str]]:
        run, step = self._run, about.step
        if about.isolated:
            task_run = names.isolated_task_run_id(run.flow_run_id, about.isolated)
        else:
            task_run = names.task_run_id(run.flow_run_id, None if run.plan.mode.in_one_sandbox else step)
        found = {
            names.ROLE_RUN: (names.run_resource(run.id), run.run.name),
            "flow-run": (f"prefect.flow-run.{run.flow_run_id}", names.prefect_name(run.run.name)),
            "task-run": (f"prefect.task-run.{task_run}", names.prefect_name(step)),
        }
        return [
            {"prefect.resource.id": resource, "prefect.resource.role": role, "prefect.resource.name": name}
            for role, (resource, name) in found.items()
        ]

"""Isolated steps that the runner of a failed dynamic pipeline would wait for for ever.

Once its pipeline has failed ZenML's runner starts nothing, retries least of all, and waits for what runs. A step that
fails then, and has retries left, ZenML's store calls RETRYING, which is no end: nobody makes that retry, and the runner
waits on, in a sandbox that is paid for (zenml/execution/pipeline/dynamic/runner.py, ``_monitoring_loop`` and
``_abort_and_drain``). Such a step is told to be stopped here. Imports ZenML.
"""

from __future__ import annotations

import threading
from contextvars import copy_context
from uuid import UUID

from zenml.enums import ExecutionStatus
from zenml.execution.pipeline.dynamic.future_registry import StartupCancelled
from zenml.execution.pipeline.dynamic.run_context import DynamicPipelineRunContext
from zenml.execution.pipeline.dynamic.runner import DynamicPipelineRunner
from zenml.logger import get_logger

from bridge.zenml_side import step_runs
from bridge.zenml_side.zenml_away import couldnt_ask

LOOK_SECONDS = 2.0
"""Between two looks, once the pipeline has failed. Nothing tells of a runner's failure, nor of a step's status."""

logger = get_logger(__name__)
_watched: dict[UUID, threading.Event] = {}
"""By run: set when its runner waits for nothing any more. A child pipeline has a runner of its own."""


def watch() -> None:
    """Watch over the run whose runner calls this, until :func:`release`. Does nothing outside of a dynamic pipeline."""
    context = DynamicPipelineRunContext.get()
    if context is None:
        return
    over = _watched[context.run.id] = threading.Event()
    watching = (_watch, context.runner, over)
    threading.Thread(target=copy_context().run, args=watching, name="unmade-retries", daemon=True).start()


def release() -> None:
    """The runner that calls this waits for nothing any more."""
    context = DynamicPipelineRunContext.get()
    if context is not None and (over := _watched.pop(context.run.id, None)):
        over.set()


def _watch(runner: DynamicPipelineRunner, over: threading.Event) -> None:
    before: set[UUID] = set()
    while not over.wait(LOOK_SECONDS):
        if not _has_failed(runner):
            continue
        try:
            waiting = {one.id: one for one in step_runs.list_of(runner.run, status=ExecutionStatus.RETRYING.value)}
            # Seen twice: a retry that was begun just before the pipeline failed is under way.
            for step_run_id in before & waiting.keys():
                logger.warning(
                    "Step `%s` isn't tried again, since its pipeline has failed: it counts as stopped.",
                    waiting[step_run_id].name,
                )
                step_runs.record_stopped(step_run_id)
            before = set(waiting)
        except Exception as error:
            if not couldnt_ask(error):
                raise
            logger.warning("ZenML can't be reached (%s); asking again.", type(error).__name__)


def _has_failed(runner: DynamicPipelineRunner) -> bool:
    try:
        runner.raise_if_startup_cancelled()
    except StartupCancelled:
        return True
    return False

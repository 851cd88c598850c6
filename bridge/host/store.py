"""ZenML's store as the scheduler asks it: off the event loop, and again while it can't be reached.

The flow's :mod:`bridge.zenml_side.zenml_calls` does the same with a library that a sandbox need not have.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus

from bridge.daemon_threads import DaemonThreads
from bridge.flow_run.outcome import Diagnosis, Reported, StepRecord
from bridge.host.preload import Loaded
from bridge.zenml_side import step_runs
from bridge.zenml_side.cache_lookup import CacheLookup
from bridge.zenml_side.open_questions import OpenQuestions
from bridge.zenml_side.zenml_away import couldnt_ask

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
"""How long the server is asked again. Each call of ZenML's client tries for about half a minute by itself."""
_PAUSE_SECONDS = 2.0
_THREADS = 4

_logger = logging.getLogger(__name__)


class Store:
    """What the scheduler asks and tells ZenML about one run."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._closed = threading.Event()
        self._pool = DaemonThreads(_THREADS, "zenml")
        self._questions = OpenQuestions()
        self._cache = CacheLookup(loaded.snapshot, loaded.run, loaded.stack) if loaded.stack else None

    async def _ask(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._patiently, function)

    async def records(self, steps: list[str]) -> dict[str, StepRecord]:
        """The newest records of these steps, one for each."""
        found = await self._ask(lambda: step_runs.latest(self._loaded.run, steps))
        return {step: found.get(step, StepRecord()) for step in steps}

    async def record(self, step: str) -> StepRecord:
        """The newest record of one step."""
        return (await self._questions.asked(asyncio.ensure_future(self.records([step]))))[step]

    async def in_order(self, record: StepRecord) -> StepRecord:
        """Return a record that needs no question, once everything is answered that is being asked of steps now."""
        await self._questions.all_answered()
        return record

    async def failed(self, step: str, record: StepRecord, diagnosis: Diagnosis) -> None:
        """Tell of a failure that ZenML doesn't know."""
        loaded = self._loaded
        await self._ask(lambda: step_runs.record_failure(loaded.run, step, record, diagnosis))

    async def stopped(self, record: StepRecord) -> None:
        """Tell that a step run which is still RUNNING was stopped."""
        step_run_id = record.step_run_id
        if step_run_id is not None and record.reported is Reported.RUNNING:
            await self._ask(lambda: step_runs.record_stopped(UUID(step_run_id)))

    async def stop_running(self) -> None:
        """Tell that all steps that run were stopped."""
        await self._ask(lambda: step_runs.stop_running(self._loaded.run))

    async def close_retries(self, step: str) -> None:
        """Tell that a step isn't tried again."""
        await self._ask(lambda: step_runs.close_retries(self._loaded.run, step))

    async def stop_retrying(self, step: str) -> None:
        """Tell that a step which waits for a retry was stopped."""
        await self._ask(lambda: step_runs.stop_retrying(self._loaded.run, step))

    async def cached(self, step: str) -> Reported | None:
        """Ask the cache; None where the step has to run."""
        cache = self._cache
        return None if cache is None else await self._ask(lambda: cache.answer(step))

    async def stopping(self) -> bool:
        """Whether somebody is stopping, or has stopped, the run."""
        run = self._loaded.run
        status = await self._ask(lambda: Client().get_pipeline_run(run.id, hydrate=False).status)
        return status in (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED)

    def close(self) -> None:
        """Let the threads go; they ask no more."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)

    def _patiently(self, function: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return function()
            except Exception as error:
                if time.monotonic() > deadline or not couldnt_ask(error):
                    raise
                _logger.warning("ZenML can't be reached (%s); asking again.", type(error).__name__)
                if self._closed.wait(_PAUSE_SECONDS):
                    raise

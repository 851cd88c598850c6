"""The flow's side of the lease (:mod:`bridge.lease`): it says that it is at work for as long as it is."""

from __future__ import annotations

import asyncio
import logging

from zenml.models import PipelineRunResponse

from bridge import lease
from bridge.truth import ZenMLThread

RETRY_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class Renewal:
    """Renews the lease of a run's sandboxes, from the beginning. Use as ``async with``; it never fails the run.

    ``life`` counts the processes of the flow run, this one included.
    """

    def __init__(self, run: PipelineRunResponse, orphan_timeout: float, life: int) -> None:
        self._run = run
        self._life = life
        self._period = lease.period(orphan_timeout)
        # Of its own, and without patience: the next try comes soon, and must not wait behind other calls.
        self._thread = ZenMLThread(patience=0.0)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Renewal:
        self._task = asyncio.ensure_future(self._keep_renewing())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._thread.close()

    async def _keep_renewing(self) -> None:
        while True:
            try:
                await self._thread.call(lambda: lease.renew(self._run, self._life))
                pause = self._period
            except Exception as error:
                # The sandboxes can't read either where ZenML is away, and don't count that time.
                _logger.warning("ZenML couldn't be told that the flow is at work: %s: %s", type(error).__name__, error)
                pause = min(self._period, RETRY_SECONDS)
            await asyncio.sleep(pause)

"""The side of the lease (:mod:`bridge.cleanup.lease`) that renews it: it says that somebody is at work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

from zenml.exceptions import CredentialsNotValid
from zenml.models import PipelineRunResponse

from bridge.cleanup import lease, signs_of_life
from bridge.zenml_side.zenml_calls import LOGIN_HAS_ENDED, ZenMLCalls

RETRY_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class _Renewing:
    """Renews a lease, from the beginning. Use as ``async with``; it never fails anything."""

    def __init__(self, renew: Callable[[], None], orphan_timeout: float) -> None:
        self._renew = renew
        self._period = lease.period(orphan_timeout)
        # Of its own, and without patience: the next try comes soon, and must not wait behind other calls.
        self._thread = ZenMLCalls(patience=0.0)
        self._task: asyncio.Task[None] | None = None
        self._login_has_ended = False

    async def __aenter__(self) -> None:
        self._task = asyncio.ensure_future(self._keep_renewing())

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._thread.close()

    async def _keep_renewing(self) -> None:
        while True:
            try:
                await self._thread.call(self._renew)
                pause, self._login_has_ended = self._period, False
            except CredentialsNotValid as error:
                self._say_so_once(error)
                pause = min(self._period, RETRY_SECONDS)
            except Exception as error:
                # The sandboxes can't read either where ZenML is away, and don't count that time.
                _logger.warning("ZenML couldn't be told that somebody waits: %s: %s", type(error).__name__, error)
                pause = min(self._period, RETRY_SECONDS)
            await asyncio.sleep(pause)

    def _say_so_once(self, error: CredentialsNotValid) -> None:
        """Sandboxes have logins of their own: unlike in an outage they do count this time."""
        if not self._login_has_ended:
            seconds = self._period * lease.LOOKS
            _logger.error(
                "%s Until then no sign of life can be given, and sandboxes end %g s after the last one (%s).",
                LOGIN_HAS_ENDED,
                seconds,
                error,
            )
        self._login_has_ended = True


class Renewal(_Renewing):
    """A flow's, for all sandboxes of its run. ``life`` counts the processes of the flow run, this one included."""

    def __init__(self, run: PipelineRunResponse, orphan_timeout: float, life: int) -> None:
        super().__init__(lambda: signs_of_life.renew(run, life), orphan_timeout)


class StepRenewal(_Renewing):
    """That of a step operator's caller, for the sandbox of one step run."""

    def __init__(self, project_id: UUID, step_run_id: UUID, orphan_timeout: float) -> None:
        super().__init__(lambda: signs_of_life.renew_step_run(project_id, step_run_id), orphan_timeout)

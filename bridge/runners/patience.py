"""A runner that can't be asked says nothing about a sandbox: it is asked again as long as that may be alive."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from bridge.errors import RunnerUnavailable
from bridge.flow_run.outcome import SandboxEnd
from bridge.runners.base import Sandbox

T = TypeVar("T")

_BEYOND_SECONDS = 600.0
"""How long after its timeout a sandbox may still count as alive."""

_unavailable = retry_if_exception_type(RunnerUnavailable)
_pauses = wait_exponential_jitter(initial=1, max=30)


async def while_it_may_live(ask: Callable[[], Awaitable[T]], timeout: int) -> T:
    """Return what the runner answers of a sandbox, asking again as long as it could still be alive.

    Raises ``RunnerUnavailable`` after that.
    """
    stop = stop_after_delay(timeout + _BEYOND_SECONDS)
    # Not as a call: of a function that isn't declared async, tenacity takes the coroutine for the answer.
    async for attempt in AsyncRetrying(retry=_unavailable, wait=_pauses, stop=stop, reraise=True):
        with attempt:
            return await ask()
    raise AssertionError("unreachable: tenacity returns or raises")


async def terminate(sandbox: Sandbox, ended: asyncio.Future[SandboxEnd]) -> None:
    """End a sandbox, asking again as long as it could still be alive; ``ended`` is done once it isn't."""
    try:
        async for attempt in AsyncRetrying(retry=_unavailable, wait=_pauses, stop=lambda _: ended.done(), reraise=True):
            with attempt:
                await sandbox.terminate()
    except RunnerUnavailable:
        # It is given up only once the end is known.
        return

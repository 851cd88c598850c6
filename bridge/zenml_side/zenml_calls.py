"""Calling ZenML from an event loop: off the loop, and again until there is an answer.

ZenML's client is synchronous. Its calls run in a few threads of their own; a server that can't be reached is asked
again, since "I couldn't ask" says nothing about a step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential_jitter,
)
from zenml.exceptions import CredentialsNotValid

from bridge.daemon_threads import DaemonThreads
from bridge.zenml_side.zenml_away import couldnt_ask

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
"""How long ZenML's server is asked again before the flow gives up asking."""
THREADS = 4
LOGIN_HAS_ENDED = (
    "ZenML's server doesn't take the login of this process any more. `zenml login` on this machine lets the run go on; "
    "`ZENML_STORE_API_KEY`, the key of a service account, doesn't end."
)

_logger = logging.getLogger(__name__)


class ZenMLCalls:
    """Runs ZenML calls off the event loop. Close it with :meth:`close`.

    With ``login_comes_back`` a login that has ended is waited for like a server: a person may log in again.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS, *, login_comes_back: bool = False) -> None:
        self._pool = DaemonThreads(THREADS, "zenml")
        self._patience = patience
        self._login_comes_back = login_comes_back

    async def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` and return what it returns; asks again while ZenML can't be reached.

        Raises what ``function`` raises, and the last "couldn't ask" after ``patience`` seconds. ``function``
        may run more than once.
        """
        context = copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, context.run, self._patiently, function)

    def _patiently(self, function: Callable[[], T]) -> T:
        return patiently(function, self._patience, login_comes_back=self._login_comes_back)

    def close(self) -> None:
        """Let the threads go. What one is still at holds up nobody, not the end of the process either."""
        self._pool.shutdown()


def patiently(function: Callable[[], T], patience: float = PATIENCE_SECONDS, *, login_comes_back: bool = False) -> T:
    """Run ``function`` and return what it returns; asks again while ZenML can't be reached, for ``patience`` seconds.

    Raises what ``function`` raises, the last "couldn't ask" too. ``function`` may run more than once.
    """

    def may_come_back(error: BaseException) -> bool:
        return couldnt_ask(error) or (login_comes_back and isinstance(error, CredentialsNotValid))

    retrying = Retrying(
        retry=retry_if_exception(may_come_back),
        wait=wait_exponential_jitter(initial=0.5, max=15),
        stop=stop_after_delay(patience),
        before_sleep=_say,
        reraise=True,
    )
    return retrying(function)


def _say(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, CredentialsNotValid):
        _logger.warning("%s (%s) Asking again.", LOGIN_HAS_ENDED, error)
        return
    _logger.warning("ZenML can't be reached (%s); asking again.", type(error).__name__)

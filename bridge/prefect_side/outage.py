"""Prefect's API away for a while: what that must not cost a run.

Most of Prefect's own engine rides an outage out: task-run states travel as events that are sent again once there is a
connection, and the final state of the flow run was still reported after 60 s (tried on 3.8.8; the client's retries are
finite). What was lost in those 60 s were the last log lines, since their shipper gives up 30 s after the run's end. So
the flow waits for the API before it ends: then neither hangs on a number of retries.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.context import SyncClientContext
from prefect.exceptions import ObjectNotFound
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential_jitter,
)

PATIENCE_SECONDS = 600.0
"""How long the end of a run waits for Prefect's API."""
BEGIN_SECONDS = 120.0
"""How long its beginning does: somebody waits to be told."""
_PAUSES = wait_exponential_jitter(initial=0.5, max=5)

T = TypeVar("T")

_logger = logging.getLogger(__name__)


def is_passing(error: BaseException) -> bool:
    """Whether an error of Prefect's client says that the API couldn't be asked now, rather than what it thinks."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, OSError))


def asking_again(patience: float = PATIENCE_SECONDS) -> AsyncRetrying:
    """Ask Prefect's API again while it can't be asked, for ``patience`` seconds; then the last error is raised."""
    return AsyncRetrying(
        retry=retry_if_exception(is_passing),
        wait=_PAUSES,
        stop=stop_after_delay(patience),
        reraise=True,
    )


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what Prefect's API answers, asked again while it is away. Raises what its client raises."""
    answer: T = await asking_again()(ask)
    return answer


async def until_it_answers(client: PrefectClient, flow_run_id: UUID, patience: float = PATIENCE_SECONDS) -> None:
    """Wait until Prefect's API answers, ``patience`` seconds at most; then say so and go on."""
    try:
        async for attempt in asking_again(patience).copy(before_sleep=_saying("The run is over and waits")):
            with attempt:
                await client.read_flow_run(flow_run_id)
    except ObjectNotFound:
        return  # it answers
    except (httpx.HTTPError, OSError) as error:
        _logger.warning("Prefect's API didn't come back within %.0f s: %s", patience, error)


@contextmanager
def once_it_answers(patience: float = BEGIN_SECONDS) -> Iterator[None]:
    """Within, Prefect's engine finds the API, which it asks its first question but once.

    A flow run that goes on would else be left Pending, and nobody would work on it. Raises what Prefect raises where
    its API stays away for ``patience`` seconds.
    """
    retrying = Retrying(
        retry=retry_if_exception(lambda error: is_passing(_what_the_client_met(error))),
        wait=_PAUSES,
        stop=stop_after_delay(patience),
        before_sleep=_saying("The run waits"),
        reraise=True,
    )
    with ExitStack() as stack:
        context = retrying(lambda: stack.enter_context(SyncClientContext.get_or_create()))
        # Entering asks for the server's version, but once in the life of a process.
        retrying(context.client.api_version)
        yield


def _what_the_client_met(error: BaseException) -> BaseException:
    """Of what the look at the server's version raises, the cause: it is a RuntimeError whatever happened."""
    return error.__cause__ or error if isinstance(error, RuntimeError) else error


def _saying(who_waits: str) -> Callable[[RetryCallState], None]:
    """Say before the first pause, and only then, what waits for Prefect's API, and why."""

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1:
            _logger.warning("%s for Prefect's API (%s: %s).", who_waits, type(error).__name__, error)

    return say

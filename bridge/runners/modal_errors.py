"""What the Modal SDK raises, in this package's words; and what may be asked again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from modal import exception
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from bridge.errors import (
    CapacityUnavailable,
    CredentialsRefused,
    RunnerError,
    RunnerUnavailable,
    SandboxRefused,
)

T = TypeVar("T")
_logger = logging.getLogger(__name__)

SDK_ERRORS = (exception.Error, GRPCError, StreamTerminatedError, OSError, asyncio.TimeoutError)
"""Everything that a call of the SDK raises for a reason outside this program."""

CREDENTIALS_FIX = (
    "Run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or set token_id and token_secret on the stack "
    "component: `zenml orchestrator update <name> --token_id=<id> --token_secret=<secret>`, or `zenml step-operator "
    "update` alike"
)
_WRONG_REQUEST = (
    exception.InvalidError,
    exception.NotFoundError,
    exception.RemoteError,
    exception.UnimplementedError,
    exception.RequestSizeError,
    exception.VersionError,
)
_UNREACHED = (exception.ServiceError, exception.ConnectionError, StreamTerminatedError, OSError, asyncio.TimeoutError)
_OF_A_FILE = (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_UNREACHED_STATUS = (Status.UNAVAILABLE, Status.DEADLINE_EXCEEDED, Status.CANCELLED, Status.UNKNOWN)


def is_throttled(error: BaseException | None) -> bool:
    """Whether Modal refused a create for coming too fast; it says so with the status it has for no capacity."""
    return isinstance(error, exception.ResourceExhaustedError) and "rate limit" in str(error).lower()


def is_full(error: BaseException | None) -> bool:
    """Whether Modal has no machine of the kind at present."""
    return isinstance(error, exception.ResourceExhaustedError) and not is_throttled(error)


def is_transient(error: BaseException) -> bool:
    """Whether an error of the SDK says nothing but "couldn't ask"."""
    if isinstance(error, (exception.AuthError, exception.PermissionDeniedError)):
        return False
    if _is_of_a_file(error):
        return False
    if isinstance(error, exception.ConflictError):  # it is an InvalidError: the state was in the way, not the request
        return True
    return isinstance(error, SDK_ERRORS) and not isinstance(error, _WRONG_REQUEST)


def is_away(error: BaseException | None) -> bool:
    """Whether Modal couldn't be reached: narrower than :func:`is_transient`, which includes failures of its own."""
    if isinstance(error, exception.Error):
        return isinstance(error, _UNREACHED)
    if isinstance(error, GRPCError):
        return error.status in _UNREACHED_STATUS
    return isinstance(error, _UNREACHED) and not _is_of_a_file(error)


def _is_of_a_file(error: BaseException) -> bool:
    # A connection's error may be one of these, as where a firewall forbids it, and names none.
    return isinstance(error, _OF_A_FILE) and error.filename is not None


def translated(error: BaseException, doing: str) -> RunnerError:
    """Return the error of this package for one of :data:`SDK_ERRORS`. ``doing`` is what was tried."""
    text = f"{doing}: {str(error).strip() or type(error).__name__}".rstrip(".")
    if isinstance(error, (exception.AuthError, exception.PermissionDeniedError)):
        return CredentialsRefused(f"{text}. {CREDENTIALS_FIX}.")
    if _is_of_a_file(error):
        return SandboxRefused(f"{text}. Let this user read it, or leave it out: a build context has its dockerignore.")
    if is_full(error):
        return CapacityUnavailable(f"{text}.")
    if is_transient(error):
        return RunnerUnavailable(f"{text}.")
    return SandboxRefused(f"{text}.")


class Patience:
    """When to stop asking: ``seconds`` after the first failure, however long the asking went well before that.

    To be given to tenacity as ``stop``.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def __call__(self, state: RetryCallState) -> bool:
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds


def say_again(state: RetryCallState) -> None:
    """Log, at the first failure, that Modal is asked again. To be given to tenacity as ``before_sleep``."""
    error = state.outcome.exception() if state.outcome else None
    if state.attempt_number == 1 and error is not None:
        _logger.warning("%s It is asked again.", translated(error, "Modal"))


async def ride_out(
    call: Callable[[], Awaitable[T]], seconds: float, when: Callable[[BaseException], bool] = is_transient
) -> T:
    """Return what ``call`` returns; repeat it while it fails so, for ``seconds`` from its first failure on.

    Raises what the last attempt raised. The SDK's own retries end after 0.7 s.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(when),
        stop=Patience(seconds),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        before_sleep=say_again,
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("tenacity returned without a result")

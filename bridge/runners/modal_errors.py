"""What the Modal SDK raises, in this package's words; and what may be asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from grpclib.exceptions import GRPCError, StreamTerminatedError
from modal import exception
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from bridge.errors import (
    CapacityUnavailable,
    CredentialsRefused,
    RunnerError,
    RunnerUnavailable,
    SandboxRefused,
)

T = TypeVar("T")

SDK_ERRORS = (exception.Error, GRPCError, StreamTerminatedError, OSError, asyncio.TimeoutError)
"""Everything that a call of the SDK raises for a reason outside this program."""

CREDENTIALS_FIX = (
    "Run `modal setup`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or set token_id and token_secret on the "
    "stack component"
)
_WRONG_REQUEST = (
    exception.InvalidError,
    exception.NotFoundError,
    exception.RemoteError,
    exception.UnimplementedError,
    exception.RequestSizeError,
    exception.VersionError,
)


def is_throttled(error: BaseException) -> bool:
    """Whether Modal refused a create for coming too fast; it says so with the status it has for no capacity."""
    return isinstance(error, exception.ResourceExhaustedError) and "rate limit" in str(error).lower()


def is_transient(error: BaseException) -> bool:
    """Whether an error of the SDK says nothing but "couldn't ask"."""
    if isinstance(error, (exception.AuthError, exception.PermissionDeniedError)):
        return False
    if isinstance(error, exception.ConflictError):  # it is an InvalidError: the state was in the way, not the request
        return True
    return isinstance(error, SDK_ERRORS) and not isinstance(error, _WRONG_REQUEST)


def translated(error: BaseException, doing: str) -> RunnerError:
    """Return the error of this package for one of :data:`SDK_ERRORS`. ``doing`` is what was tried."""
    text = f"{doing}: {str(error).strip() or type(error).__name__}".rstrip(".")
    if isinstance(error, (exception.AuthError, exception.PermissionDeniedError)):
        return CredentialsRefused(f"{text}. {CREDENTIALS_FIX}.")
    if isinstance(error, exception.ResourceExhaustedError) and not is_throttled(error):
        return CapacityUnavailable(f"{text}.")
    if is_transient(error):
        return RunnerUnavailable(f"{text}.")
    return SandboxRefused(f"{text}.")


async def ride_out(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Return what ``call`` returns; repeat it while it fails transiently, for ``seconds`` from now on.

    Raises what the last attempt raised. The SDK's own retries end after 0.7 s.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("tenacity returned without a result")

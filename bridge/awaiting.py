"""Waiting for an event, but not for ever, or not for it alone. Standard library only."""

from __future__ import annotations

import asyncio
from typing import Any


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait until ``event`` is set, at most ``seconds``. Return whether it is."""
    # asyncio.timeout, which would read better, came with Python 3.11.
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False


async def done_or_set(future: asyncio.Future[Any], event: asyncio.Event, timeout: float | None = None) -> None:
    """Wait until ``future`` is done or ``event`` is set, at most ``timeout`` seconds. Cancels neither, nor raises."""
    is_set: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({future, is_set}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_set.cancel()

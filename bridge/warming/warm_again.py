"""Warm sandboxes that another process made: which attempts are, or were, in them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from bridge import names
from bridge.errors import RunnerError, RunnerUnavailable
from bridge.host import wire
from bridge.runners.base import CallsHosts, HostCall, Sandbox

PATIENCE_SECONDS = 30.0
"""How long a host may take to answer. One that doesn't runs no step: it is still loading, or it is stuck."""

_logger = logging.getLogger(__name__)


async def attempts_in(calls: CallsHosts, hosts: Sequence[Sandbox]) -> dict[str, Sandbox]:
    """Return the sandbox of each attempt that the step hosts of these sandboxes know, by the attempt's key.

    They know the one that runs, and those that have ended in them. Who knows none, or doesn't answer, isn't there.
    """
    known = await asyncio.gather(*(_known(calls, host) for host in hosts))
    return {key: host for host, keys in zip(hosts, known, strict=True) for key in keys}


async def newest_in(calls: CallsHosts, host: Sandbox) -> str | None:
    """Return the key of the attempt that came last into this sandbox, which runs; None if none did.

    Raises ``RunnerUnavailable``.
    """
    try:
        keys = await asyncio.wait_for(_ask(calls, host), PATIENCE_SECONDS)
    except asyncio.TimeoutError:
        raise RunnerUnavailable(f"The step host of sandbox {host.id} doesn't answer") from None
    return keys[-1] if keys else None


async def _known(calls: CallsHosts, host: Sandbox) -> list[str]:
    try:
        return await asyncio.wait_for(_ask(calls, host), PATIENCE_SECONDS)
    except (RunnerError, asyncio.TimeoutError) as error:
        _logger.warning("The step host of sandbox %s doesn't answer: %s", host.id, error)
        return []


async def _ask(calls: CallsHosts, host: Sandbox) -> list[str]:
    frames = wire.FrameReader()
    async for data in calls.call(host, HostCall(names.host_socket(host.name), wire.Call(wire.WHAT_RUNS, ""))):
        for frame in frames.feed(data):
            return frame.body.decode().split()
    return []

"""Warm sandboxes that an earlier process of this flow run left behind: which of this run's steps are in them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from bridge import names
from bridge.errors import RunnerError
from bridge.host import wire
from bridge.runners.base import CallsHosts, HostCall, Runner, Sandbox

PATIENCE_SECONDS = 30.0
"""How long a host may take to answer. One that doesn't runs no step: it is still loading, or it is stuck."""

_logger = logging.getLogger(__name__)


async def left_behind(
    runner: Runner, calls: CallsHosts, tags: Mapping[str, str], modal_environments: Sequence[str | None]
) -> dict[str, Sandbox]:
    """Return the sandbox of each attempt that still runs, by the attempt's key.

    Sandboxes in which nothing runs are ended: what ended in them, ZenML knows. Raises ``RunnerUnavailable`` where
    nobody can be asked.
    """
    found: dict[str, Sandbox] = {}
    for environment in dict.fromkeys(modal_environments):
        hosts = [box for box in await runner.running(tags, environment) if names.is_host_name(box.name)]
        running = await asyncio.gather(*(_running(calls, host) for host in hosts))
        for host, key in zip(hosts, running, strict=True):
            if key:
                found[key] = host
            else:
                await host.terminate()
    return found


async def _running(calls: CallsHosts, host: Sandbox) -> str:
    try:
        return await asyncio.wait_for(_ask(calls, host), PATIENCE_SECONDS)
    except (RunnerError, asyncio.TimeoutError) as error:
        _logger.warning("The step host of sandbox %s doesn't answer, it is ended: %s", host.id, error)
        return ""


async def _ask(calls: CallsHosts, host: Sandbox) -> str:
    frames = wire.FrameReader()
    async for data in calls.call(host, HostCall(names.host_socket(host.name), wire.Call(wire.WHAT_RUNS, ""))):
        for frame in frames.feed(data):
            return frame.body.decode()
    return ""

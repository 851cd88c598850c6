"""Where the step run of a step operator is carried out, for a process that didn't begin it."""

from __future__ import annotations

from dataclasses import dataclass

from bridge import names
from bridge.errors import RunnerUnavailable
from bridge.runners.base import CallsHosts, Runner, Sandbox
from bridge.warm_again import newest_in


@dataclass(frozen=True)
class Place:
    """Where a step run is carried out, as a process knows it that didn't begin it.

    ``name`` is that of a sandbox of its own, which is also its attempt's key; ``told`` the id of the sandbox that ZenML
    was told, None where that is none.
    """

    app: str
    name: str
    modal_environment: str | None
    told: str | None = None


async def sandbox_at(runner: Runner, place: Place) -> Sandbox | None:
    """Return the sandbox that runs there: its own, or a warm one in which no step came after it.

    Raises ``RunnerUnavailable``.
    """
    own: Sandbox | None = await runner.find(place.app, place.name, place.modal_environment)
    if own is not None or place.told is None or not isinstance(runner, CallsHosts) or not runner.can_call:
        return own
    shared: Sandbox | None = await runner.by_id(place.told)
    if shared is None or not names.is_host_name(shared.name) or await shared.poll() is not None:
        return None
    try:
        newest = await newest_in(runner, shared)
    except RunnerUnavailable:
        if await shared.poll() is not None:
            return None  # it has just ended
        raise
    return shared if newest == place.name else None


async def end_at(runner: Runner, place: Place) -> None:
    """End the sandbox that runs there, if one does. Raises ``RunnerUnavailable``."""
    sandbox = await sandbox_at(runner, place)
    if sandbox is not None:
        await sandbox.terminate()

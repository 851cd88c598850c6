"""The sandboxes that run in several places, each place asked once and each sandbox named once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType

from bridge.components import Place
from bridge.runners.base import Sandbox

Tagged = tuple[Sandbox, Mapping[str, str]]


class Listing:
    """Lists the running sandboxes with all of ``tags``.

    Use as ``async with``: what it has listed can be ended until it is left.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = tags
        self._open = AsyncExitStack()
        self._places: set[Place] = set()
        self._named: set[str] = set()

    async def __aenter__(self) -> Listing:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def at(self, place: Place) -> Sequence[Tagged]:
        """Return those at a place that weren't listed before, each with its own tags.

        Raises ``RunnerUnavailable``, ``SandboxRefused`` (with ``CredentialsRefused``).
        """
        if place in self._places:
            return []
        runner = await self._open.enter_async_context(place.runner_for())
        found = await runner.tagged(self._tags, place.modal_environment)
        self._places.add(place)
        # Two places may be one: an environment and the profile's, an account by its token and as this machine's own.
        new = [(sandbox, own) for sandbox, own in found if sandbox.id not in self._named]
        self._named |= {sandbox.id for sandbox, _ in new}
        return new

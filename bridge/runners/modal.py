"""Sandboxes on Modal, through the public SDK, on both of its sandbox backends.

Of this package only this module, its helpers ``modal_*`` and :mod:`bridge.upstream_modal` import the SDK.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING

import modal

from bridge import names, upstream_modal
from bridge.plan import SandboxSpec
from bridge.planning.prices import NoPrices, Prices
from bridge.runners.base import OUTAGE_SECONDS, HostCall, Sandbox, SandboxRequest
from bridge.runners.modal_build import ImageBuilder
from bridge.runners.modal_call import BLIP_SECONDS, talk
from bridge.runners.modal_clients import Clients
from bridge.runners.modal_costs import costs_by_tag
from bridge.runners.modal_create import Creator, network_of
from bridge.runners.modal_errors import SDK_ERRORS, is_away, ride_out, translated
from bridge.runners.modal_objects import HOST_PROGRAM, ModalObjects
from bridge.runners.modal_prices import prices_of
from bridge.runners.modal_sandbox import ModalSandbox
from bridge.runners.rate import RateLimit
from bridge.runners.registry import Registry

if TYPE_CHECKING:
    from bridge.images.image_definition import ImageDefinition

_LISTINGS = 8
"""Apps that are listed at the same time."""


class ModalRunner:
    """Runs sandboxes on Modal.

    Args:
        token_id: With ``token_secret``, the credentials; without, Modal's own configuration
            (``MODAL_TOKEN_ID`` and ``MODAL_TOKEN_SECRET``, a profile of ``~/.modal.toml``).
        token_secret: See ``token_id``.
        registry: A container registry whose images need a user and a password.
        create_rate: Most sandboxes created per second.
        outage: Seconds of Modal being away that connecting, creating and waiting survive.
    """

    def __init__(
        self,
        *,
        token_id: str | None = None,
        token_secret: str | None = None,
        registry: Registry | None = None,
        create_rate: float = 4.0,
        outage: float = OUTAGE_SECONDS,
    ) -> None:
        """Raises ``ValueError`` for half a token pair."""
        if bool(token_id) != bool(token_secret):
            raise ValueError("token_id and token_secret belong together: give both or neither")
        self._clients = Clients((token_id, token_secret) if token_id and token_secret else None, outage)
        self._objects = ModalObjects(self._clients, registry, outage)
        self._creator = Creator(self._clients, self._objects, RateLimit(create_rate), outage)
        self._outage = outage

    def __repr__(self) -> str:
        return "<ModalRunner>"

    @property
    def kind(self) -> str:
        """``modal``."""
        return "modal"

    @property
    def default_parallelism(self) -> int | None:
        """None: Modal has room."""
        return None

    async def __aenter__(self) -> ModalRunner:
        """Connect. Raises ``CredentialsRefused`` where they are missing or wrong, ``RunnerUnavailable``."""
        await self._clients.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._creator.settled()
        await self._clients.close()

    def host_command(self, *arguments: str) -> tuple[str, ...]:
        """Return the argv that runs the host in a sandbox; its image brings this very package."""
        return ("python", HOST_PROGRAM, *arguments)

    async def check(self, app: str | None, specs: Sequence[SandboxSpec]) -> None:
        """Look up environments, secrets, volumes and the app; see :class:`bridge.runners.base.AsksAhead`.

        Where the installed SDK can't do what is asked, that is said first.
        """
        for spec in specs:
            network_of(spec)
        secrets = {(spec.modal_environment, name) for spec in specs for name in spec.secrets}
        volumes = {(spec.modal_environment, mount.name) for spec in specs for mount in spec.volumes}
        for environment, name in sorted(secrets, key=str):
            await self._objects.secret(environment, name)
        for environment, name in sorted(volumes, key=str):
            await self._objects.volume(environment, name)
        if app is None:
            return
        # Last, since it makes the app where there is none.
        for environment in dict.fromkeys(spec.modal_environment for spec in specs):
            await self._objects.app(environment, app)

    async def build_image(
        self,
        app: str,
        definition: ImageDefinition,
        modal_environment: str | None,
        say: Callable[[str], None],
    ) -> str:
        """Build an image and return its id; see :class:`bridge.runners.base.BuildsImages`."""
        builder = ImageBuilder(self._clients, self._objects, self._outage)
        return await builder.build(app, definition, modal_environment, say)

    async def start(self, request: SandboxRequest) -> ModalSandbox:
        """Make a sandbox, or find the running one of that name; see :class:`bridge.runners.base.Runner`."""
        return await self._creator.create(request)

    @property
    def can_call(self) -> bool:
        """Always: Modal's sandboxes are Linux."""
        return True

    def call(self, sandbox: Sandbox, call: HostCall) -> AsyncIterator[bytes]:
        """Ask the step host in a sandbox; see :class:`bridge.runners.base.CallsHosts`."""
        assert isinstance(sandbox, ModalSandbox)
        return talk(sandbox, call)

    async def reload_volumes(self, sandbox: Sandbox) -> None:
        """Show a sandbox what others have written; see :class:`bridge.runners.base.CallsHosts`."""
        assert isinstance(sandbox, ModalSandbox)
        async with sandbox.reached() as handle:
            try:
                await ride_out(handle.reload_volumes.aio, BLIP_SECONDS, is_away)
            except SDK_ERRORS as error:
                raise translated(error, f"The volumes of sandbox {sandbox.id} can't be reloaded") from error

    async def find(self, app: str, name: str, modal_environment: str | None = None) -> ModalSandbox | None:
        """Return the running sandbox of that name, or None. Raises ``RunnerUnavailable``."""
        return await self._creator.find(app, name, modal_environment)

    async def by_id(self, sandbox_id: str) -> ModalSandbox | None:
        """Return the sandbox of that id, running or ended, or None. Raises ``RunnerUnavailable``."""
        return await self._creator.by_id(sandbox_id)

    async def running(self, tags: Mapping[str, str], modal_environment: str | None = None) -> Sequence[ModalSandbox]:
        """Return the running sandboxes of this package's apps that carry all of ``tags``.

        With ``MODAL_SANDBOX_V2=0`` the SDK sees those of the V1 backend alone. Raises ``RunnerUnavailable``.
        """
        return [sandbox for sandbox, _ in await self.tagged(tags, modal_environment)]

    async def tagged(
        self, tags: Mapping[str, str], modal_environment: str | None = None
    ) -> Sequence[tuple[ModalSandbox, Mapping[str, str]]]:
        """Return the same, each with all of its tags. Raises ``RunnerUnavailable``."""

        async def ask() -> Sequence[list[tuple[ModalSandbox, Mapping[str, str]]]]:
            app_ids = await self._app_ids(modal_environment)
            room = asyncio.Semaphore(_LISTINGS)
            return await asyncio.gather(*(self._running_in(app_id, tags, room) for app_id in app_ids))

        try:
            found = await ride_out(ask, self._outage)
        except SDK_ERRORS as error:
            raise translated(error, "The running sandboxes can't be listed") from error
        return [sandbox for sandboxes in found for sandbox in sandboxes]

    async def app_url(self, app: str, modal_environment: str | None = None) -> str:
        """Return the page of an app; see :class:`bridge.runners.base.HasDashboard`."""
        found = await self._objects.app(modal_environment, app)
        return await found.get_dashboard_url.aio()

    async def costs(
        self, app: str, tags: Mapping[str, str], tag: str, since: datetime, modal_environment: str | None = None
    ) -> Mapping[str | None, Decimal]:
        """Return what an app's sandboxes cost; see :class:`bridge.runners.base.HasDashboard`."""
        found = await self._objects.app(modal_environment, app)
        try:
            return await costs_by_tag(found, tags, tag, since)
        except SDK_ERRORS as error:
            raise translated(error, "What the sandboxes cost can't be asked") from error

    async def prices(self) -> Prices | NoPrices:
        """Return what machines cost; see :class:`bridge.runners.base.HasPrices`."""
        try:
            return await prices_of(self._clients.main)
        except SDK_ERRORS as error:
            raise translated(error, "Modal's prices can't be asked") from error

    async def _app_ids(self, environment: str | None) -> set[str]:
        listed = await upstream_modal.app_ids(self._clients.main, environment)
        known = self._objects.known_apps(environment)
        prefix = names.app_name("")
        return {app_id for name, app_id in listed.items() if name.startswith(prefix)} | set(known.values())

    async def _running_in(
        self, app_id: str, tags: Mapping[str, str], room: asyncio.Semaphore
    ) -> list[tuple[ModalSandbox, Mapping[str, str]]]:
        async with room:
            found: list[tuple[ModalSandbox, Mapping[str, str]]] = []
            async for handle in modal.Sandbox.list.aio(app_id=app_id, tags=dict(tags), client=self._clients.main):
                own = await handle.get_tags.aio()
                name = own.get(names.TAG_SANDBOX, "")
                found.append((await ModalSandbox.of(handle, name, self._clients, self._outage), own))
            return found

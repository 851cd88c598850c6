"""Making a sandbox on Modal: one for a name, none left behind, on the first GPU type that has room."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypedDict, TypeVar

import modal
from modal import exception
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from bridge import names, upstream_modal
from bridge.awaiting import done_or_set
from bridge.errors import CapacityUnavailable, RunnerUnavailable, SandboxRefused
from bridge.plan import SandboxSpec
from bridge.runners.base import SandboxRequest
from bridge.runners.modal_clients import Clients
from bridge.runners.modal_errors import (
    SDK_ERRORS,
    Patience,
    is_away,
    is_full,
    is_throttled,
    ride_out,
    say_again,
    translated,
)
from bridge.runners.modal_objects import ModalObjects
from bridge.runners.modal_sandbox import ModalSandbox
from bridge.runners.rate import RateLimit

ABANDON_SECONDS = 10.0
"""How long a create that nobody wants any more may take to say what it made, before it is cut off."""
THROTTLE_SECONDS = 120.0
"""How long a create is repeated that Modal refuses for coming too fast."""
RACES = 3
"""How often a name may be taken when it is asked for, and free when it is looked up."""

T = TypeVar("T")


class _Network(TypedDict, total=False):
    """What limits the sandbox's network; nothing where it isn't limited, since older SDKs don't know all of it."""

    block_network: bool
    outbound_cidr_allowlist: list[str]
    outbound_domain_allowlist: list[str]


class _Arguments(_Network):
    """What ``modal.Sandbox.create`` takes from here. Never ``idle_timeout``: it doesn't see a busy entrypoint."""

    app: modal.App
    client: modal.Client
    name: str
    tags: dict[str, str]
    image: modal.Image
    env: dict[str, str | None]
    secrets: list[modal.Secret]
    timeout: int
    cloud: str | None
    region: list[str] | None
    cpu: float | None
    memory: int | None
    volumes: dict[Any, Any]


@dataclass(frozen=True)
class _Made:
    sandbox: ModalSandbox
    is_new: bool


@dataclass
class _Try:
    """What is known of one try at a create, also when it is cut off in the middle."""

    found: bool = False
    """Whether there was a sandbox of that name already."""


@dataclass
class _Making:
    """One making, shared by all who ask for its name meanwhile."""

    task: asyncio.Task[_Made] = field(init=False)
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)
    callers: int = 0


class _Abandoned(Exception):
    """Everybody who wanted the sandbox was cancelled, and there is none."""


class Creator:
    """Makes the sandboxes of one runner. Belongs to one event loop."""

    def __init__(self, clients: Clients, objects: ModalObjects, limit: RateLimit, outage: float) -> None:
        self._clients = clients
        self._objects = objects
        self._limit = limit
        self._outage = outage
        self._makings: dict[tuple[str | None, str, str], _Making] = {}
        self._leftovers: set[asyncio.Task[None]] = set()

    async def create(self, request: SandboxRequest) -> ModalSandbox:
        """Make it, or find the one of that name; the errors are those of ``Runner.start``."""
        key = (request.spec.modal_environment, request.app, request.name)
        making = self._makings.get(key)
        if making is None or making.abandoned.is_set():
            making = self._makings[key] = _Making()
            making.task = asyncio.create_task(self._make(request, making.abandoned))
            making.task.add_done_callback(functools.partial(self._forget, key, making))
        making.callers += 1
        try:
            return (await asyncio.shield(making.task)).sandbox
        except asyncio.CancelledError:
            making.callers -= 1
            if not making.callers:
                making.abandoned.set()
                leftover = asyncio.create_task(self._undo(making.task))
                self._leftovers.add(leftover)
                leftover.add_done_callback(self._leftovers.discard)
                await asyncio.shield(leftover)
            raise

    def _forget(self, key: tuple[str | None, str, str], making: _Making, _: asyncio.Task[_Made]) -> None:
        if self._makings.get(key) is making:
            del self._makings[key]

    async def settled(self) -> None:
        """Wait until nothing is being made or undone."""
        while tasks := [*(making.task for making in self._makings.values()), *self._leftovers]:
            await asyncio.wait(tasks)

    async def find(self, app: str, name: str, environment: str | None) -> ModalSandbox | None:
        """Return the running sandbox of that name, or None."""
        try:
            handle = await ride_out(lambda: self._named(app, name, environment), self._outage)
        except SDK_ERRORS as error:
            raise translated(error, f"Sandbox {name!r} can't be looked up") from error
        return await self._sandbox(handle, name) if handle is not None else None

    async def _named(self, app: str, name: str, environment: str | None) -> modal.Sandbox | None:
        try:
            return await modal.Sandbox.from_name.aio(app, name, environment_name=environment, client=self._clients.main)
        except exception.NotFoundError:
            return None

    async def by_id(self, sandbox_id: str) -> ModalSandbox | None:
        """Return the sandbox of that id, running or ended, or None."""

        async def with_tags() -> tuple[modal.Sandbox, Mapping[str, str]]:
            handle = await modal.Sandbox.from_id.aio(sandbox_id, client=self._clients.main)
            return handle, await handle.get_tags.aio()

        try:
            handle, tags = await ride_out(with_tags, self._outage)
        except exception.NotFoundError:
            return None
        except SDK_ERRORS as error:
            raise translated(error, f"Sandbox {sandbox_id} can't be looked up") from error
        return await self._sandbox(handle, tags.get(names.TAG_SANDBOX, ""))

    async def _sandbox(self, handle: modal.Sandbox, name: str) -> ModalSandbox:
        return await ModalSandbox.of(handle, name, self._clients, self._outage)

    async def _undo(self, task: asyncio.Task[_Made]) -> None:
        await asyncio.wait([task])
        if task.cancelled() or task.exception() is not None:
            return
        made = task.result()
        if made.is_new:
            await made.sandbox.terminate()

    async def _make(self, request: SandboxRequest, abandoned: asyncio.Event) -> _Made:
        arguments = await _unless(abandoned, self._arguments(request))
        gpu = request.spec.resources.gpu
        types: list[str | None] = [f"{name}:{gpu.count}" for name in gpu.types] if gpu else [None]
        for gpu_type in types:
            made = await self._on(gpu_type, request, arguments, abandoned)
            if made is not None:
                return made
        raise CapacityUnavailable(
            f"Modal had no machine for sandbox {request.name!r} ({request.spec.resources}) within "
            f"{request.spec.capacity_timeout} s{' for each GPU type' if len(types) > 1 else ''}. "
            "Name more GPU types, another region or cloud, or raise `capacity_timeout`."
        )

    async def _on(
        self, gpu: str | None, request: SandboxRequest, arguments: _Arguments, abandoned: asyncio.Event
    ) -> _Made | None:
        """Make it on one GPU type; None where that had no room."""
        try:
            return await self._patiently(gpu, request, arguments, abandoned)
        except SDK_ERRORS as error:
            known = translated(error, f"Modal didn't make sandbox {request.name!r}")
            if isinstance(known, CapacityUnavailable):
                return None
            raise known from error

    async def _patiently(
        self, gpu: str | None, request: SandboxRequest, arguments: _Arguments, abandoned: asyncio.Event
    ) -> _Made | None:
        """Make it; again where Modal refuses it for now or can't be reached. One name, so never a second sandbox."""
        troubles = [
            (is_throttled, Patience(THROTTLE_SECONDS)),
            (is_full, Patience(request.spec.capacity_timeout)),
            (is_away, Patience(self._outage)),
        ]
        unsure = False

        def stop(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            return next(patience for is_it, patience in troubles if is_it(error))(state)

        def again(state: RetryCallState) -> None:
            nonlocal unsure
            unsure = unsure or (state.outcome is not None and is_away(state.outcome.exception()))
            say_again(state)

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(lambda error: any(is_it(error) for is_it, _ in troubles)),
                stop=stop,
                wait=wait_random_exponential(multiplier=1, max=15),
                sleep=lambda seconds: _unless(abandoned, asyncio.sleep(seconds)),
                before_sleep=again,
                reraise=True,
            ):
                with attempt:
                    await _unless(abandoned, self._limit.turn())
                    made = await self._within_capacity(gpu, request, arguments, abandoned)
                    # One that is found may be of an earlier try whose answer was lost: then it is this making's.
                    return _Made(made.sandbox, made.is_new or unsure) if made is not None else None
        except _Abandoned:
            if unsure:
                await self._end_what_is_left(request)
            raise
        raise AssertionError("tenacity returned without a result")

    async def _within_capacity(
        self, gpu: str | None, request: SandboxRequest, arguments: _Arguments, abandoned: asyncio.Event
    ) -> _Made | None:
        """Create one; None if it has no machine in time. A create is cut off only where it hangs."""
        this = _Try()
        create = asyncio.create_task(self._create(request, gpu, arguments, this))
        await done_or_set(create, abandoned, request.spec.capacity_timeout)
        if abandoned.is_set():
            await self._until_cuttable(create, request)
        if create.done():
            return _Made(await self._sandbox(create.result(), request.name), not this.found)
        create.cancel()
        await asyncio.wait({create})
        if this.found and abandoned.is_set():
            raise _Abandoned  # it isn't this making's to end
        await self._end_what_is_left(request)
        if abandoned.is_set():
            raise _Abandoned
        return None

    async def _end_what_is_left(self, request: SandboxRequest) -> None:
        """The SDK ends one that waits for its machine, but not one whose RPC it was cancelled in, or failed in."""
        environment = request.spec.modal_environment
        try:
            left = await ride_out(lambda: self._named(request.app, request.name, environment), ABANDON_SECONDS)
        except SDK_ERRORS as error:
            raise translated(error, f"Whether there is a sandbox {request.name!r} can't be asked") from error
        if left is not None:
            await (await self._sandbox(left, request.name)).terminate()

    async def _create(
        self, request: SandboxRequest, gpu: str | None, arguments: _Arguments, this: _Try
    ) -> modal.Sandbox:
        """Create one or find the one of that name, and wait for its machine. Raises what the SDK raises."""
        sandbox = await self._created_or_found(request, gpu, arguments, this)
        try:
            await upstream_modal.scheduled(sandbox)
        except asyncio.CancelledError:
            # This handle is about to be lost. Terminating without waiting for it: whoever cancels looks for what is
            # left. Where it was found, whoever cancels decides.
            if not this.found:
                await asyncio.shield(sandbox.terminate.aio())
            raise
        except exception.Error as error:
            if not isinstance(error, exception.ConflictError) and type(error) is not exception.Error:
                raise
            # It ended before it had a machine, or so fast that it has none any more: its end says how.
        return sandbox

    async def _created_or_found(
        self, request: SandboxRequest, gpu: str | None, arguments: _Arguments, this: _Try
    ) -> modal.Sandbox:
        for race in range(RACES):
            if race:
                await self._limit.turn()
            try:
                return await modal.Sandbox.create.aio(*request.command, gpu=gpu, **arguments)
            except exception.AlreadyExistsError:
                handle = await self._named(request.app, request.name, request.spec.modal_environment)
                if handle is not None:
                    this.found = True
                    return handle
        raise RunnerUnavailable(f"The name {request.name!r} was taken and free again {RACES} times.")

    async def _until_cuttable(self, create: asyncio.Task[modal.Sandbox], request: SandboxRequest) -> None:
        """Wait until a create is done, or has made a sandbox that only waits for its machine, or hangs."""
        for seconds in (ABANDON_SECONDS / 10, ABANDON_SECONDS):
            await asyncio.wait({create}, timeout=seconds)
            if create.done():
                return
            try:
                found = await self._named(request.app, request.name, request.spec.modal_environment)
            except SDK_ERRORS:
                continue  # as one that hangs: what there is when it was cut off is asked for then, patiently
            if found is not None:
                return

    async def _arguments(self, request: SandboxRequest) -> _Arguments:
        spec = request.spec
        _check(request)
        assert spec.image is not None
        app = await self._objects.app(spec.modal_environment, request.app)
        image, secrets, volumes = await asyncio.gather(
            self._objects.image(spec.modal_environment, app, spec.image),
            asyncio.gather(*(self._objects.secret(spec.modal_environment, name) for name in spec.secrets)),
            asyncio.gather(*(self._objects.volume(spec.modal_environment, mount.name) for mount in spec.volumes)),
        )
        if request.secret_environment:
            own: Mapping[str, str] = request.secret_environment
            secrets = [*secrets, modal.Secret.from_dict(dict(own))]
        return _Arguments(
            app=app,
            client=self._clients.main,
            name=request.name,
            tags=tags_of(request, spec),
            image=image,
            env=dict(request.environment),
            secrets=secrets,
            timeout=spec.timeout,
            cloud=spec.cloud,
            region=list(spec.region) or None,
            cpu=spec.resources.cpu,
            memory=spec.resources.memory,
            volumes={
                mount.path: volume.with_mount_options(read_only=True) if mount.read_only else volume
                for mount, volume in zip(spec.volumes, volumes, strict=True)
            },
            **network_of(spec),
        )


def _check(request: SandboxRequest) -> None:
    if not request.command:
        raise SandboxRefused(f"Sandbox {request.name!r} has no command.")
    if request.spec.image is None:
        raise SandboxRefused(f"Sandbox {request.name!r} has no image: Modal can't make one without.")


def network_of(spec: SandboxSpec) -> _Network:
    """The arguments that limit a sandbox's network. Raises ``SandboxRefused`` where the installed SDK can't."""
    network = _Network()
    if spec.block_network:
        network["block_network"] = True
    if spec.outbound_cidrs:
        network["outbound_cidr_allowlist"] = list(spec.outbound_cidrs)
    if spec.outbound_domains:
        if "outbound_domain_allowlist" not in inspect.signature(modal.Sandbox.create).parameters:
            raise SandboxRefused(
                f"outbound_domain_allowlist={list(spec.outbound_domains)}: Modal's SDK {version('modal')}, which is "
                "installed here, doesn't know it. Install modal>=1.6, or name networks in outbound_cidr_allowlist."
            )
        network["outbound_domain_allowlist"] = list(spec.outbound_domains)
    return network


def tags_of(request: SandboxRequest, spec: SandboxSpec) -> dict[str, str]:
    """Return the tags that a sandbox gets on Modal."""
    # Modal's listings don't bring the name back; ours come last, so that nobody's extra tag hides them.
    return {**dict(spec.tags), **request.tags, names.TAG_SANDBOX: names.modal_tag(request.name)}


async def _unless(event: asyncio.Event, awaitable: Coroutine[Any, Any, T]) -> T:
    """Return what it returns, or cancel it and raise ``_Abandoned`` once the event is set."""
    task = asyncio.ensure_future(awaitable)
    try:
        await done_or_set(task, event)
        if event.is_set() and not task.done():
            raise _Abandoned
        return task.result()
    finally:
        task.cancel()

"""The Modal objects that sandboxes are made of: apps, images, secrets, volumes. Each is looked up once a run."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Generic, TypeVar

import modal
from modal import exception

import bridge
from bridge import names, upstream_modal
from bridge.errors import RunnerUnavailable, SandboxRefused
from bridge.runners.base import OUTAGE_SECONDS
from bridge.runners.modal_clients import Clients
from bridge.runners.modal_errors import SDK_ERRORS, is_away, ride_out, translated
from bridge.runners.registry import Registry

PACKAGE_PATH = "/opt/zenml-modal-prefect/bridge"
"""Where a sandbox finds the ``bridge`` of the process that made it."""
HOST_PROGRAM = f"{PACKAGE_PATH}/host/sandbox_main.py"
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")
_LOG_TAIL = 2_000
_TRANSIENT_PULL = re.compile(
    r"connection reset|connection refused|i/o timeout|TLS handshake|temporar|too ?many ?requests|\b429\b|"
    r"\b50[0234]\b|no such host|timed out|external shut-down|unexpected EOF",
    re.IGNORECASE,
)
"""Words of registries and of Modal for a build that may well succeed the next time."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Memo(Generic[Key, Value]):
    """Makes a value once for each key. Who asks meanwhile waits for it; a failure isn't kept."""

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[Value]] = {}

    async def get(self, key: Key, make: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        if key not in self._tasks:
            task = self._tasks[key] = asyncio.create_task(make())
            task.add_done_callback(lambda task: self._settle(key, task))
        return await asyncio.shield(self._tasks[key])

    def _settle(self, key: Key, task: asyncio.Task[Value]) -> None:
        if task.cancelled() or task.exception() is not None:
            del self._tasks[key]

    def known(self) -> dict[Key, Value]:
        """The values that are there."""
        return {key: task.result() for key, task in self._tasks.items() if task.done()}


class ModalObjects:
    """Looks objects up, and builds the image. ``environment`` is a Modal environment, None for the default one;
    ``outage`` is how many seconds Modal may be away.

    All methods raise ``SandboxRefused`` where there is no such object, ``CredentialsRefused``,
    ``RunnerUnavailable``.
    """

    def __init__(self, clients: Clients, registry: Registry | None, outage: float = OUTAGE_SECONDS) -> None:
        self._clients = clients
        self._outage = outage
        self._registry = registry
        self._apps: _Memo[tuple[str | None, str], modal.App] = _Memo()
        self._images: _Memo[tuple[str | None, str], modal.Image] = _Memo()
        self._secrets: _Memo[tuple[str | None, str], modal.Secret] = _Memo()
        self._volumes: _Memo[tuple[str | None, str], modal.Volume] = _Memo()

    async def app(self, environment: str | None, name: str) -> modal.App:
        """Return the app of that name; it is made where there is none."""

        async def look_up() -> modal.App:
            return await modal.App.lookup.aio(
                name, client=self._clients.main, environment_name=environment, create_if_missing=True
            )

        doing = f"Modal app {name!r}{_in(environment)} can't be used"
        return await self._once(self._apps, (environment, name), look_up, doing)

    def known_apps(self, environment: str | None) -> dict[str, str]:
        """Return name -> id of the apps of an environment that were used so far."""
        return {
            name: app.app_id
            for (known, name), app in self._apps.known().items()
            if known == environment and app.app_id is not None
        }

    async def secret(self, environment: str | None, name: str) -> modal.Secret:
        """Return a named secret."""

        async def look_up() -> modal.Secret:
            secret = modal.Secret.from_name(name, environment_name=environment)
            await secret.hydrate.aio(self._clients.main)
            return secret

        doing = f"Modal secret {name!r}{_in(environment)} can't be used (`modal secret create` makes one)"
        return await self._once(self._secrets, (environment, name), look_up, doing)

    async def volume(self, environment: str | None, name: str) -> modal.Volume:
        """Return a named volume; none is made, since an empty one isn't what the user meant."""

        async def look_up() -> modal.Volume:
            volume = modal.Volume.from_name(name, environment_name=environment, create_if_missing=False)
            await volume.hydrate.aio(self._clients.main)
            return volume

        doing = f"Modal volume {name!r}{_in(environment)} can't be used (`modal volume create` makes one)"
        return await self._once(self._volumes, (environment, name), look_up, doing)

    async def image(self, environment: str | None, app: modal.App, reference: str) -> modal.Image:
        """Return an image of a registry, or one that Modal built, with this process's ``bridge`` in it, built."""
        return await self._images.get((environment, reference), lambda: self._build(app, reference))

    async def registry_secret(self, image: str) -> modal.Secret | None:
        """What a build needs to pull an image of the registry that was given, asked for now; None for another."""
        registry = self._registry
        pair = await asyncio.to_thread(registry.login) if registry is not None and registry.has(image) else None
        return modal.Secret.from_dict({"REGISTRY_USERNAME": pair[0], "REGISTRY_PASSWORD": pair[1]}) if pair else None

    async def _build(self, app: modal.App, reference: str) -> modal.Image:
        built = names.built_image_id(reference)
        try:
            with tempfile.TemporaryDirectory() as folder:
                # A copy, since the SDK gives up on files that somebody edits while it reads them.
                package = Path(folder) / "bridge"
                await asyncio.to_thread(shutil.copytree, Path(bridge.__file__).parent, package, ignore=_IGNORED)
                if built is None:
                    image = modal.Image.from_registry(reference, secret=await self.registry_secret(reference))
                else:
                    image = modal.Image.from_id(built, client=self._clients.main)
                # Modal puts an image's ENTRYPOINT in front of a sandbox's command. One layer with the copy, not two.
                commands = (f"COPY . {PACKAGE_PATH}", "ENTRYPOINT []")
                image = image.dockerfile_commands(*commands, context_dir=package, ignore=[])
                return await ride_out(lambda: image.build.aio(app), self._outage, is_away)
        except exception.RemoteError as error:
            doing = f"Image {reference!r} can't be built on Modal"
            text, transient = await build_failure(self._clients.main, error, doing)
            raise RunnerUnavailable(text) if transient else SandboxRefused(text) from error
        except exception.NotFoundError as error:
            if built is None:
                raise translated(error, f"Image {reference!r} can't be built on Modal") from error
            raise SandboxRefused(
                f"Image {reference!r} isn't known to this Modal account ({error}). The account that submitted the "
                "pipeline built it: use the same one here, or submit the pipeline again, which builds it anew."
            ) from error
        except SDK_ERRORS as error:
            raise translated(error, f"Image {reference!r} can't be built on Modal") from error

    async def _once(
        self,
        memo: _Memo[tuple[str | None, str], Value],
        key: tuple[str | None, str],
        look_up: Callable[[], Coroutine[Any, Any, Value]],
        doing: str,
    ) -> Value:
        try:
            return await memo.get(key, lambda: _riding_out(look_up, self._outage))
        except SDK_ERRORS as error:
            raise translated(error, doing) from error


async def build_failure(client: modal.Client, error: exception.RemoteError, doing: str) -> tuple[str, bool]:
    """What to say of a build that failed, the end of its log included; and whether it may succeed the next time."""
    # SDK 1.4 has the image's id in the message alone.
    found = re.search(r"im-\w+", str(error))
    log = ""
    if found:
        try:
            log = await upstream_modal.build_log(client, found[0])
        except SDK_ERRORS as unreadable:
            log = f"(its log can't be read: {unreadable})"
    text = f"{doing}: {str(error).splitlines()[0].rstrip('.')}"
    if tail := log.strip()[-_LOG_TAIL:]:
        text += f". The end of the build's log:\n{tail}"
    return text, _TRANSIENT_PULL.search(f"{error}\n{log}") is not None


async def _riding_out(look_up: Callable[[], Coroutine[Any, Any, Value]], outage: float) -> Value:
    return await ride_out(look_up, outage, is_away)


def _in(environment: str | None) -> str:
    return f" of environment {environment!r}" if environment else ""

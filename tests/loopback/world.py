"""The state of the loopback Modal: one workspace with its environments, apps, secrets, volumes and sandboxes."""

from __future__ import annotations

import asyncio
import secrets as random_secrets
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2

from tests.loopback import rules
from tests.loopback.faults import Faults
from tests.loopback.images import BuiltImage, ImageStore
from tests.loopback.model import LoopbackImage, Stats
from tests.loopback.sandbox import LoopbackSandbox, Placement, base_environment, make_folder
from tests.loopback.volumes import MountedVolume

_ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: str, length: int = 22) -> str:
    return f"{prefix}-" + "".join(random_secrets.choice(_ALPHABET) for _ in range(length))


@dataclass
class App:
    """An app of an environment."""

    id: str
    name: str
    environment: str


@dataclass
class Secret:
    """A secret; ``name`` is empty for an anonymous one."""

    id: str
    name: str
    values: Mapping[str, str]


@dataclass
class Volume:
    """A volume: a folder with what is committed."""

    id: str
    name: str
    folder: Path


@dataclass
class World:
    """Everything there is. Belongs to the server's loop."""

    folder: Path
    registry: Mapping[str, LoopbackImage]
    environments: tuple[str, ...]
    guests: Mapping[str, tuple[str, ...]]
    """Token id -> the environments of an account that has only some of them."""
    declared_secrets: Mapping[str, Mapping[str, str]]
    declared_volumes: Sequence[str]
    marker: str
    faults: Faults = field(default_factory=Faults)
    apps: dict[str, App] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    sandboxes: dict[str, LoopbackSandbox] = field(default_factory=dict)
    by_key: dict[str, str] = field(default_factory=dict)
    """Idempotency key of a create -> sandbox id."""
    calls: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[str] = field(default_factory=Counter)
    creating: set[asyncio.Task[LoopbackSandbox]] = field(default_factory=set)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.images = ImageStore(self.folder / "images", self.registry)
        self._freed = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        for name, values in self.declared_secrets.items():
            secret = Secret(new_id("st"), name, dict(values))
            self.secrets[secret.id] = secret
        for name in self.declared_volumes:
            self.add_volume(name)

    def environment(self, name: str, token_id: str = "") -> str:
        """Return the environment of that name. Raises NOT_FOUND (modal/_object.py: unknown environment)."""
        there = self.guests.get(token_id, self.environments)
        if name and name not in there:
            raise rules.not_found(f"Environment {name!r} not found")
        return name or there[0]

    def app(self, app_id: str) -> App:
        if app_id not in self.apps:
            raise rules.not_found(f"App {app_id} not found")
        return self.apps[app_id]

    def add_volume(self, name: str) -> Volume:
        volume = Volume(new_id("vo"), name, self.folder / "volumes" / (name or new_id("anonymous")))
        volume.folder.mkdir(parents=True)
        self.volumes[volume.id] = volume
        return volume

    def sandbox(self, sandbox_id: str) -> LoopbackSandbox:
        if sandbox_id not in self.sandboxes:
            raise rules.not_found(f"Sandbox {sandbox_id} not found")
        return self.sandboxes[sandbox_id]

    def by_task(self, task_id: str) -> LoopbackSandbox:
        for sandbox in self.sandboxes.values():
            if sandbox.task_id == task_id:
                return sandbox
        raise rules.not_found(f"Task {task_id} not found")

    def named(self, app: App, name: str, *, ended: bool = False) -> LoopbackSandbox | None:
        """The newest sandbox of that name in an app that runs; with ``ended``, else one that has ended."""
        found = [box for box in self.sandboxes.values() if box.app_id == app.id and name and box.name == name]
        alive = [box for box in found if not box.ended.is_set()]
        return (alive or (found if ended else []) or [None])[-1]  # type: ignore[list-item]

    def create(
        self,
        backend: int,
        app: App,
        definition: api_pb2.Sandbox,
        tags: Mapping[str, str],
        environment: Mapping[str, str],
        named_secrets: tuple[str, ...],
        image: BuiltImage,
    ) -> LoopbackSandbox:
        """Make a sandbox and start its life."""
        # modal/sandbox/_common.py _is_v1_sandbox_id: 22 letters and digits make a V1 sandbox, more a V2 one;
        # _task_command_router_client.py _is_v2_task_id: a V2 task ends in "V".
        sandbox_id = new_id("sb", 22 if backend == 1 else 26)
        task_id = new_id("ta", 22) if backend == 1 else new_id("ta", 25) + "V"
        folder = make_folder(self.folder / "sandboxes" / sandbox_id, image)
        mounts = {mount.mount_path: self.volumes[mount.volume_id] for mount in definition.volume_mounts}
        read_only = {mount.mount_path for mount in definition.volume_mounts if mount.read_only}
        mounted = {
            path: MountedVolume(volume.folder, folder / "volumes" / str(number), path in read_only)
            for number, (path, volume) in enumerate(mounts.items())
        }
        placement = Placement(
            app=app.name,
            modal_environment=app.environment,
            image=self.images.with_mounts(image, list(definition.mount_ids)),
            environment=environment,
            named_secrets=named_secrets,
            volumes=tuple(mounted.values()),
            volume_names={
                path: f"{volume.name}{', read-only' if path in read_only else ''}" for path, volume in mounts.items()
            },
            folder=folder,
            base_environment={
                **base_environment(sandbox_id, task_id, image, folder, self.marker),
                # There is no chroot to mount into: this says where a mount path really is.
                **({"MODAL_LOOPBACK_VOLUMES": _volume_map(mounted)} if mounts else {}),
            },
        )
        sandbox = LoopbackSandbox(sandbox_id, task_id, backend, app.id, definition, tags, placement)
        self.sandboxes[sandbox_id] = sandbox
        task = asyncio.create_task(self._live(sandbox))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return sandbox

    async def _live(self, sandbox: LoopbackSandbox) -> None:
        try:
            await sandbox.run(self._place, self.faults)
        finally:
            self.wake()

    async def _place(self, sandbox: LoopbackSandbox) -> None:
        while not self.has_place(*sandbox.gpu):
            await self._freed.wait()
        sandbox.scheduled.set()
        self.most_at_once = max(self.most_at_once, len(self.alive()))

    def has_place(self, gpu_type: str, count: int) -> bool:
        """Whether there is room for a sandbox with these GPUs."""
        if gpu_type not in self.faults.capacity:
            return True
        used = sum(box.gpu[1] or 1 for box in self.alive() if box.gpu[0] == gpu_type)
        return used + (count or 1) <= self.faults.capacity[gpu_type]

    def wake(self) -> None:
        """Look again for places: capacity came free or was set."""
        self._freed.set()
        self._freed = asyncio.Event()

    def alive(self) -> list[LoopbackSandbox]:
        """The sandboxes that are scheduled and haven't ended."""
        return [box for box in self.sandboxes.values() if box.scheduled.is_set() and not box.ended.is_set()]

    def stats(self) -> Stats:
        boxes = self.sandboxes.values()
        return Stats(
            created=len(self.sandboxes),
            alive=len(self.alive()),
            most_at_once=self.most_at_once,
            sandbox_seconds=sum(box.seconds for box in boxes),
            gpu_seconds=sum(box.seconds * box.gpu[1] for box in boxes),
            image_builds=self.images.builds,
            calls=dict(self.calls),
            in_flight={name: number for name, number in self.in_flight.items() if number},
            creating=len(self.creating),
        )


def _volume_map(mounts: Mapping[str, MountedVolume]) -> str:
    return ":".join(f"{path}={volume.place}" for path, volume in mounts.items())

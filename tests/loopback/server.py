"""The loopback Modal server, in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import shutil
import signal
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import modal
import trustme
from grpclib import GRPCError, Status
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto.api_grpc import ModalClientBase
from modal_proto.task_command_router_grpc import TaskCommandRouterBase
from packaging.version import Version

from tests import ports
from tests.loopback.control import Control
from tests.loopback.images import BuiltImage
from tests.loopback.model import LoopbackImage, SandboxRecord, Stats
from tests.loopback.router import Router
from tests.loopback.rpc import ManyStreamsServer, Service, Tape, configuration
from tests.loopback.sandbox import EVICTED, OUT_OF_MEMORY, LoopbackSandbox, Result, kill_marked
from tests.loopback.world import World
from tests.ports import HOST

T = TypeVar("T")
STOP_TIMEOUT = 30.0


class LoopbackModal:
    """A Modal that runs on this machine: gRPC on 127.0.0.1, sandboxes as real processes.

    Use it as ``with LoopbackModal(images={...}) as modal:``; hand :attr:`env` to whatever is to be its client. All
    methods may be called from any thread, while it runs.

    Args:
        images: What the registry has, by reference.
        secrets: Named secrets of the workspace.
        volumes: Named volumes of the workspace.
        environments: Its environments, the default one first.
        token: The token pair it accepts, of an account with all environments.
        guests: Other token pairs that it accepts, each with those of the environments that its account has.
        tape: Whether to keep every request: :meth:`requests` returns them.
    """

    def __init__(
        self,
        images: Mapping[str, LoopbackImage] | None = None,
        *,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
        volumes: Sequence[str] = (),
        environments: Sequence[str] = ("main",),
        token: tuple[str, str] = ("ak-loopback", "as-loopback"),
        guests: Mapping[tuple[str, str], Sequence[str]] | None = None,
        tape: bool = False,
    ) -> None:
        self._tape: Tape | None = [] if tape else None
        self._images = images or {}
        self._secrets = secrets or {}
        self._volume_names = tuple(volumes)
        self._environments = tuple(environments)
        self.token = token
        self._guests = guests or {}
        self._thread = threading.Thread(target=self._run, name="loopback-modal", daemon=True)
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._world: World
        self._control: ManyStreamsServer | None = None
        self._router_tls = _tls_of_old_sdks()
        self._held = (ports.reserve(), ports.reserve())
        self._ports = tuple(map(ports.number, self._held))
        self.folder = Path(tempfile.mkdtemp(prefix="loopback-modal-"))

    # Its life.

    def __enter__(self) -> LoopbackModal:
        self._thread.start()
        self._ready.result(timeout=STOP_TIMEOUT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=STOP_TIMEOUT)
        for held in self._held:
            held.close()
        kill_marked(self._world.marker)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """What ``MODAL_SERVER_URL`` has to be."""
        return f"http://{HOST}:{self._ports[0]}"

    @property
    def env(self) -> dict[str, str]:
        """The variables that make a process's Modal SDK a client of this server."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self.token[0],
            "MODAL_TOKEN_SECRET": self.token[1],
            "MODAL_DISABLE_API_PROXY": "1",
            "MODAL_CONFIG_PATH": str(self.folder / "modal.toml"),  # never the developer's own account
        }

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(4))
        try:
            self._world = World(
                folder=self.folder,
                registry=self._images,
                environments=self._environments,
                guests={token_id: tuple(environments) for (token_id, _), environments in self._guests.items()},
                declared_secrets=self._secrets,
                declared_volumes=self._volume_names,
                marker=uuid.uuid4().hex,
            )
            router = self._server(TaskCommandRouterBase, Router(self._world), self._router_gate)
            await router.start(HOST, self._ports[1], ssl=self._router_tls, reuse_address=True)
            await self._open()
        except BaseException as error:
            self._ready.set_exception(error)
            raise
        self._ready.set_result(None)
        await self._stop.wait()
        for sandbox in self._world.sandboxes.values():
            sandbox.end(Result.GENERIC_STATUS_TERMINATED)
        if self._world.tasks:
            await asyncio.wait(self._world.tasks, timeout=STOP_TIMEOUT / 2)
        for server in (router, self._control):
            if server is not None:
                server.close()

    def _server(
        self, base: type, implementation: object, gate: Callable[[str, Mapping[str, str]], Awaitable[None]]
    ) -> ManyStreamsServer:
        server = ManyStreamsServer(
            [Service(base, implementation, gate, self._world.in_flight, self._tape)],
            config=configuration(),
            status_details_codec=custom_detail_codec,
        )
        server.max_streams = self._world.faults.max_streams
        return server

    async def _open(self) -> None:
        scheme = "https" if self._router_tls else "http"
        control = Control(self._world, f"{scheme}://{HOST}:{self._ports[1]}")
        self._control = self._server(ModalClientBase, control, self._control_gate)
        await self._control.start(HOST, self._ports[0], reuse_address=True)

    async def _control_gate(self, name: str, metadata: Mapping[str, str]) -> None:
        self._world.calls[name] += 1
        if time.monotonic() < self._world.faults.unavailable_until:
            raise GRPCError(Status.UNAVAILABLE, "the control plane is down: injected by the test")
        # modal/client.py, _get_metadata: the pair goes with every call. A missing one the SDK refuses itself.
        pair = (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret"))
        if self._world.faults.revoked or (pair != self.token and pair not in self._guests):
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID not found or token secret wrong")
        # modal/sandbox/_impl_v2.py, auth_metadata: every V2 call carries the token of AuthTokenGet as well.
        if name.startswith("Sandbox") and name.endswith("V2") and not metadata.get("x-modal-auth-token"):
            raise GRPCError(Status.UNAUTHENTICATED, f"{name} without x-modal-auth-token")

    async def _router_gate(self, name: str, metadata: Mapping[str, str]) -> None:
        self._world.calls[name] += 1
        # modal/sandbox/_task_command_router_client.py: each call carries "Bearer" and the task's token.
        if not metadata.get("authorization", "").startswith("Bearer "):
            raise GRPCError(Status.UNAUTHENTICATED, f"{name} without a bearer token")

    def _on_loop(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(timeout=STOP_TIMEOUT)

    # What happened.

    def sandboxes(self) -> list[SandboxRecord]:
        """All sandboxes so far, in the order of their making."""
        return self._on_loop(lambda: [box.record() for box in self._world.sandboxes.values()])

    def sandbox(self, key: str) -> SandboxRecord:
        """The sandbox of that id or (newest) of that name. Raises ``KeyError``."""
        return self._on_loop(lambda: self._find(key).record())

    def images(self) -> list[BuiltImage]:
        """All images that were built, in the order of their first build."""
        return self._on_loop(lambda: list(self._world.images.built.values()))

    def stats(self) -> Stats:
        """Counts and sums so far."""
        return self._on_loop(self._world.stats)

    def requests(self) -> Tape:
        """Every request so far, with the name of its RPC; nothing unless it was asked for."""
        return self._on_loop(lambda: list(self._tape or ()))

    def output(self, key: str) -> tuple[bytes, bytes]:
        """Everything a sandbox has written to stdout and stderr so far."""
        return self._on_loop(lambda: (bytes(self._find(key).stdout.data), bytes(self._find(key).stderr.data)))

    def wait_for(self, key: str, *, timeout: float = 60.0) -> SandboxRecord:
        """Wait until a sandbox has ended, processes and all."""
        box = self._on_loop(lambda: self._find(key))
        asyncio.run_coroutine_threadsafe(box.ended.wait(), self._loop).result(timeout=timeout)
        return self._on_loop(box.record)

    def volume(self, name: str) -> Path:
        """The folder of a volume. Raises ``StopIteration`` if there is none of that name."""
        return self._on_loop(lambda: next(v for v in self._world.volumes.values() if v.name == name).folder)

    def _find(self, key: str) -> LoopbackSandbox:
        boxes = self._world.sandboxes
        if key in boxes:
            return boxes[key]
        named = [box for box in boxes.values() if box.name == key]
        if not named:
            raise KeyError(f"no sandbox {key!r}")
        return named[-1]

    # What goes wrong.

    def set(self, **knobs: object) -> None:
        """Set knobs of :class:`tests.loopback.faults.Faults` by name: ``cold_start=2.0``."""

        def change() -> None:
            for name, value in knobs.items():
                if not hasattr(self._world.faults, name):
                    raise AttributeError(f"there is no knob {name!r}")
                setattr(self._world.faults, name, value)
            self._world.wake()

        self._on_loop(change)

    def capacity(self, gpu_type: str, count: int | None) -> None:
        """Say how many GPUs of a type there are; None takes the limit away. ``""`` is for sandboxes without."""

        def change() -> None:
            if count is None:
                self._world.faults.capacity.pop(gpu_type, None)
            else:
                self._world.faults.capacity[gpu_type] = count
            self._world.wake()

        self._on_loop(change)

    def create_error(self, count: int, status: Status = Status.INTERNAL) -> None:
        """Let the next attempts at a create fail. The SDK repeats some statuses three times by itself."""
        self._on_loop(lambda: self._world.faults.create_errors.extend([status] * count))

    def image_pull_fails(self, count: int) -> None:
        """Let the next pulls from the registry fail by a broken connection."""
        self._on_loop(lambda: setattr(self._world.images, "pull_failures", count))

    def image_changes(self, name: str, image: LoopbackImage) -> None:
        """Push an image to the registry."""
        self._on_loop(lambda: self._world.images.registry.update({name: image}))

    def evict(self, key: str) -> None:
        """Take a sandbox's machine back."""
        self._on_loop(lambda: self._find(key).end(EVICTED, 137))

    def oom(self, key: str) -> None:
        """Let the kernel kill a sandbox for its memory."""
        self._on_loop(lambda: self._find(key).end(OUT_OF_MEMORY, 137))

    def kill(self, key: str, number: int = signal.SIGKILL) -> None:
        """Signal a sandbox's entrypoint, as something inside would: exit code 137 for SIGKILL."""
        self._on_loop(lambda: self._find(key).kill(number))

    def lose(self, key: str) -> None:
        """End a sandbox by a failure inside Modal."""
        self._on_loop(lambda: self._find(key).end(Result.GENERIC_STATUS_INTERNAL_FAILURE, 0, "internal failure"))

    def idle_out(self, key: str) -> None:
        """End a sandbox by its idle timeout."""
        self._on_loop(lambda: self._find(key).end(Result.GENERIC_STATUS_IDLE_TIMEOUT))

    def time_out(self, key: str) -> None:
        """Let a sandbox's time be over."""
        self._on_loop(lambda: self._find(key).end(Result.GENERIC_STATUS_TIMEOUT))

    def terminate(self, key: str) -> None:
        """Terminate a sandbox, as a person in the dashboard would."""
        self._on_loop(lambda: self._find(key).end(Result.GENERIC_STATUS_TERMINATED))

    def forget(self, key: str) -> None:
        """End a sandbox and answer NOT_FOUND for it from now on."""

        def change() -> None:
            box = self._find(key)
            box.end(Result.GENERIC_STATUS_INTERNAL_FAILURE)  # for who waits for it already
            del self._world.sandboxes[box.id]

        self._on_loop(change)

    def unavailable(self, seconds: float) -> None:
        """Answer every call to the control plane with UNAVAILABLE for a while; 0 ends it."""
        self.set(unavailable_until=time.monotonic() + seconds)

    def pause(self) -> None:
        """Drop all connections to the control plane and refuse new ones. Sandboxes live on."""

        def close() -> None:
            if self._control is not None:
                self._control.drop()
                self._control = None

        self._on_loop(close)

    def resume(self) -> None:
        """Take connections again, on the same port."""
        if self._control is None:
            asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(timeout=STOP_TIMEOUT)


def _tls_of_old_sdks() -> ssl.SSLContext | None:
    """What the router has to speak with an SDK before 1.5, which takes no plain HTTP to it, not even of localhost.

    It doesn't ask there whose certificate it is (modal/_utils/task_command_router_client.py, ``_connect``).
    """
    if Version(modal.__version__) >= Version("1.5"):
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    trustme.CA().issue_cert(HOST).configure_cert(context)
    return context

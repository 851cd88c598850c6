"""One sandbox: from the request through scheduling and its process to its end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.loopback import rules
from tests.loopback.faults import Faults
from tests.loopback.images import BuiltImage
from tests.loopback.model import SandboxRecord
from tests.loopback.process import Output, RealProcess
from tests.loopback.volumes import MountedVolume

Result = api_pb2.GenericResult
OUT_OF_MEMORY = 10
"""GENERIC_STATUS_KERNEL_OOM_KILL; a number, since SDK 1.4.3 doesn't know the name."""
EVICTED = 8
"""GENERIC_STATUS_MEMORY_MANAGER_EVICTION."""
MEMORY_CHECK = 0.1
"""Seconds between two looks at a sandbox's memory."""


@dataclass
class Execution:
    """A process that a client started in a running sandbox."""

    process: RealProcess
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0


@dataclass
class Placement:
    """What a sandbox is made of, resolved from the ids of its request."""

    app: str
    modal_environment: str
    image: BuiltImage
    environment: Mapping[str, str]
    named_secrets: tuple[str, ...]
    volumes: Sequence[MountedVolume]
    volume_names: Mapping[str, str]
    folder: Path
    base_environment: Mapping[str, str]


class LoopbackSandbox:
    """A sandbox. All its methods belong to the server's loop."""

    def __init__(
        self,
        sandbox_id: str,
        task_id: str,
        backend: int,
        app_id: str,
        definition: api_pb2.Sandbox,
        tags: Mapping[str, str],
        placement: Placement,
    ) -> None:
        self.id = sandbox_id
        self.task_id = task_id
        self.backend = backend
        self.app_id = app_id
        self.definition = definition
        self.tags = dict(tags)
        self.placement = placement
        self.created_at = time.time()
        self.scheduled = asyncio.Event()
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.stdout, self.stderr = Output(), Output()
        self.process: RealProcess | None = None
        self.result = Result()
        self.executions: dict[str, Execution] = {}
        self.scheduled_at: float | None = None
        self.ended_at: float | None = None
        self._verdict: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def gpu(self) -> tuple[str, int]:
        """GPU type and count; ``("", 0)`` without."""
        config = self.definition.resources.gpu_config
        return config.gpu_type, config.count if config.gpu_type else 0

    @property
    def seconds(self) -> float:
        """Wall time between scheduling and end, or now."""
        if self.scheduled_at is None:
            return 0.0
        return (self.ended_at or time.monotonic()) - self.scheduled_at

    def end(self, status: int, exit_code: int = 0, exception: str = "") -> None:
        """Decide how it ends; the first to decide wins. Its processes are killed."""
        if not self._verdict.done():
            self._verdict.set_result(
                Result(status=status, exitcode=exit_code, exception=exception)  # type: ignore[arg-type]
            )

    async def run(self, place: Callable[[LoopbackSandbox], Awaitable[None]], faults: Faults) -> None:
        """Live its whole life: wait for a place, start, end."""
        try:
            await _either(place(self), self._verdict)
            if not self._verdict.done():
                await self._live(faults)
            self.result = await self._verdict
        finally:
            try:
                await self._clean_up()
                if self.scheduled_at is not None:
                    self.ended_at = time.monotonic()
                    for volume in self.placement.volumes:
                        volume.commit()
            finally:
                self.ended.set()
                self.started.set()

    async def placed_or_ended(self) -> None:
        """Wait until it has its machine, or never will."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self.scheduled, self.ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def running(self) -> RealProcess:
        """Return its entrypoint, once that runs. Raises FAILED_PRECONDITION if it has ended."""
        await self.started.wait()
        if self.process is None or self.ended.is_set():
            # modal/sandbox/_impl_v1.py, _open_command_router_client: ConflictError where it has ended.
            raise GRPCError(Status.FAILED_PRECONDITION, f"Sandbox {self.id} has ended")
        return self.process

    @property
    def is_ending(self) -> bool:
        """Whether it is decided how it ends: nothing more is started in it."""
        return self._verdict.done()

    async def execute(self, exec_id: str, argv: tuple[str, ...], environment: Mapping[str, str]) -> Execution:
        """Start a process beside its entrypoint.

        Raises ``OSError`` if there is no such program, NOT_FOUND if the sandbox ends meanwhile.
        """
        process = await self.spawn(argv, environment, Output(), Output())
        if self.is_ending:
            # Its end came meanwhile, and has looked already for what it has to kill.
            await process.finish()
            raise rules.not_found(f"Task {self.task_id} has ended")
        execution = self.executions[exec_id] = Execution(process)
        return execution

    async def _live(self, faults: Faults) -> None:
        for volume in self.placement.volumes:
            volume.mount()
        self.scheduled_at = time.monotonic()
        self.scheduled.set()
        loop = asyncio.get_running_loop()
        # Modal's timeout counts from the start of the sandbox (modal/sandbox/_sandbox.py: `timeout`).
        timer = loop.call_later(self.definition.timeout_secs, self.end, Result.GENERIC_STATUS_TIMEOUT)
        try:
            if faults.cold_start:
                await _either(asyncio.sleep(faults.cold_start), self._verdict)
            if faults.init_failures > 0:
                faults.init_failures -= 1
                self.end(Result.GENERIC_STATUS_INIT_FAILURE, exception="Sandbox failed to initialize")
            if not self._verdict.done():
                await self._run_process(faults)
        finally:
            timer.cancel()

    async def _run_process(self, faults: Faults) -> None:
        # modal/sandbox/_sandbox.py, create: the arguments replace the image's CMD, never its ENTRYPOINT.
        argv = self.placement.image.entrypoint + tuple(self.definition.entrypoint_args)
        argv = argv or ("sleep", str(48 * 3600))
        try:
            self.process = await self.spawn(argv, {}, self.stdout, self.stderr)
        except OSError as error:
            self.end(Result.GENERIC_STATUS_INIT_FAILURE, exception=f"failed to start {argv[0]!r}: {error}")
            return
        self.started.set()
        memory = asyncio.create_task(self._watch_memory(self.process)) if faults.enforce_memory else None
        await _either(self.process.wait(), self._verdict)
        if memory is not None:
            memory.cancel()
        if not self._verdict.done():
            code = await self.process.wait()
            status = Result.GENERIC_STATUS_SUCCESS if code == 0 else Result.GENERIC_STATUS_FAILURE
            self.end(status, code if code >= 0 else 128 - code)

    async def _watch_memory(self, process: RealProcess) -> None:
        limit = self.definition.resources.memory_mb_max or self.definition.resources.memory_mb
        while limit and not self._verdict.done():
            try:
                root = psutil.Process(process.pid)
                used = sum(child.memory_info().rss for child in [root, *root.children(recursive=True)])
            except psutil.NoSuchProcess:
                return
            if used > limit * 2**20:
                self.end(OUT_OF_MEMORY, 137)
            await asyncio.sleep(MEMORY_CHECK)

    async def spawn(
        self, argv: tuple[str, ...], extra: Mapping[str, str], stdout: Output, stderr: Output
    ) -> RealProcess:
        """Start a process in it. Raises ``OSError`` if there is no such program in its image."""
        image = self.placement.image
        environment = dict(self.placement.base_environment)
        for source in (image.env, self.placement.environment, extra):
            environment.update((name, image.local_variable(name, value)) for name, value in source.items())
        program = str(image.python) if argv[0] in ("python", "python3") else image.local(argv[0])
        arguments = [program, *(image.local(argument) for argument in argv[1:])]
        return await RealProcess.start(arguments, environment, self.placement.folder / "work", stdout, stderr)

    def reload_volumes(self) -> None:
        """Show what others have written. Raises FAILED_PRECONDITION while a file there is open."""
        opened = [Path(file.path) for process in self._processes() for file in process.open_files()]
        for volume in self.placement.volumes:
            busy = [path for path in opened if path.is_relative_to(volume.place)]
            if busy:
                # modal/volume.py, reload: the words are those that it looks for.
                raise GRPCError(
                    Status.FAILED_PRECONDITION, f"there are open files preventing the operation: {busy[0].name}"
                )
            volume.reload()

    def _processes(self) -> Iterator[psutil.Process]:
        """Everything that runs in it, daemons that have left its session included."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("MODAL_SANDBOX_ID") == self.id:
                    yield process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its entrypoint, as somebody inside would."""
        if self.process is not None:
            self.process.signal(number)

    async def _clean_up(self) -> None:
        for execution in self.executions.values():
            await execution.process.finish()
        if self.process is not None:
            await self.process.finish()
        self.stdout.end()
        self.stderr.end()

    def record(self) -> SandboxRecord:
        resources, result = self.definition.resources, self.result
        gpu_type, gpu_count = self.gpu
        access = self.definition.network_access
        return SandboxRecord(
            id=self.id,
            task_id=self.task_id,
            name=self.name,
            app=self.placement.app,
            backend=self.backend,
            argv=tuple(self.definition.entrypoint_args),
            tags=dict(self.tags),
            environment=dict(self.placement.environment),
            named_secrets=self.placement.named_secrets,
            image=self.placement.image.id,
            registry_image=self.placement.image.registry,
            cpu_milli=resources.milli_cpu,
            memory_mib=resources.memory_mb,
            gpu_type=gpu_type,
            gpu_count=gpu_count,
            region=tuple(self.definition.scheduler_placement.regions),
            cloud=self.definition.cloud_provider_str,
            modal_environment=self.placement.modal_environment,
            volumes=dict(self.placement.volume_names),
            network=type(access).NetworkAccessType.Name(access.network_access_type).lower(),
            allowed_cidrs=tuple(access.allowed_cidrs),
            allowed_domains=tuple(getattr(access, "allowed_domains", ())),  # older SDKs' messages have none
            timeout=self.definition.timeout_secs,
            idle_timeout=self.definition.idle_timeout_secs,
            status=self._status(),
            exit_code=result.exitcode if self.ended.is_set() else None,
            created_at=self.created_at,
            seconds=self.seconds,
            pid=self.process.pid if self.process is not None else None,
            folder=self.placement.folder,
        )

    def _status(self) -> str:
        if not self.ended.is_set():
            return "running" if self.scheduled.is_set() else "pending"
        if self.result.status == OUT_OF_MEMORY:
            return "kernel_oom_kill"
        if self.result.status == EVICTED:
            return "memory_manager_eviction"
        return Result.GenericStatus.Name(self.result.status).removeprefix("GENERIC_STATUS_").lower()


def base_environment(sandbox_id: str, task_id: str, image: BuiltImage, folder: Path, marker: str) -> dict[str, str]:
    """What Modal itself puts into a sandbox's environment, and the loopback's stand-ins for a container."""
    return {
        "PATH": f"{image.python.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "MODAL_SANDBOX_ID": sandbox_id,
        "MODAL_TASK_ID": task_id,
        "MODAL_IMAGE_ID": image.id,
        "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
        "MODAL_REGION": "loopback",
        # The container's /app: there is no chroot, so each sandbox has its own.
        "ZENML_MODAL_PREFECT_WORK_DIR": str(folder / "work"),
        "MODAL_LOOPBACK": marker,
    }


def make_folder(folder: Path, image: BuiltImage) -> Path:
    """Make the folders of one sandbox; its ``/app`` has what the image brings there."""
    for name in ("home", "work", "tmp"):
        (folder / name).mkdir(parents=True)
    if (image.root / "app").is_dir():
        shutil.copytree(image.root / "app", folder / "work", dirs_exist_ok=True)
    return folder


def kill_marked(marker: str) -> int:
    """Kill every process whose environment carries the marker: daemons that left their sandbox's group."""
    killed = 0
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("MODAL_LOOPBACK") == marker:
                process.kill()
                killed += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return killed


async def _either(first: Awaitable[object], verdict: asyncio.Future[Result]) -> None:
    """Wait for the first of both; cancels ``first`` if the verdict comes earlier, raises what it raises."""
    task = asyncio.ensure_future(first)
    try:
        await asyncio.wait({task, verdict}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        if not task.done():
            task.cancel()

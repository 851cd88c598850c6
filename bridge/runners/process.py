"""Sandboxes that are local processes: no account, no root, nothing leaves the machine. Linux and macOS.

Each sandbox has a supervisor (:mod:`bridge.runners.supervisor`), a process group, a working folder and a
ZenML configuration of its own. It shares the user's HOME, where caches of models live, and the machine: what
its spec says of images, hardware and places has no meaning here, and :mod:`bridge.planning.ignored` names it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

import bridge
from bridge import names
from bridge.awaiting import set_within
from bridge.errors import RunnerUnavailable, SandboxRefused
from bridge.flow_run.outcome import SandboxEnd
from bridge.runners import environment, supervisor
from bridge.runners.base import HostCall, Sandbox, SandboxRequest
from bridge.runners.local_folder import LocalFolder, StoredRequest, is_closed
from bridge.runners.local_host import talk
from bridge.runners.local_state import LocalState
from bridge.runners.once import Once
from bridge.runners.spool import SpoolReader
from bridge.watching.output import OutputLine

_TAIL_SECONDS = 0.1
"""Between two looks at a spool with nothing new. A sandbox's end is an event; that a file grows isn't."""
_HUNG_SECONDS = 30.0

_supervisors: dict[str, subprocess.Popen[bytes]] = {}
# Children of this process, whichever runner started them: kept until they are reaped, also when their runner
# is gone, since leaving a runner ends no sandbox.


class ProcessSandbox:
    """A local process and its descendants. Belongs to the event loop that its runner was entered in."""

    def __init__(self, folder: LocalFolder, request: StoredRequest, let_go: Callable[[], None]) -> None:
        self.folder = folder
        self._request = request
        self._ended = asyncio.Event()
        self._end: SandboxEnd | None = None
        self._life = -1
        # Its folder stays as long as somebody holds this object, so that output can be read late, and twice.
        self._let_go = weakref.finalize(self, let_go)

    def __repr__(self) -> str:
        return f"<ProcessSandbox {self.id} {self.name}>"

    @property
    def id(self) -> str:
        """``sb-local-`` and a random number: also its folder's name and its MODAL_SANDBOX_ID."""
        return self.folder.id

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self._request.name

    @property
    def url(self) -> str | None:
        """None: there is no dashboard."""
        return None

    async def wait(self) -> SandboxEnd:
        """Wait for its end. Raises ``RunnerUnavailable`` if its runner is left meanwhile."""
        self.watch()
        await self._ended.wait()
        return self._known_end()

    async def poll(self) -> SandboxEnd | None:
        """Return its end, or None while it runs."""
        self.watch()
        if not self._ended.is_set():
            self._on_life()
        return self._known_end() if self._ended.is_set() else None

    async def output(self) -> AsyncIterator[OutputLine]:
        """Yield its output. Of more than 64 MiB the first and the newest are kept; a line says so."""
        self.watch()
        with SpoolReader(self.folder.path) as reader:
            while True:
                ended = self._ended.is_set()
                try:
                    progress, lines = reader.read()
                except OSError as error:
                    raise RunnerUnavailable(f"The output of sandbox {self.id} can't be read: {error}") from error
                for line in lines:
                    yield line
                if progress:
                    await asyncio.sleep(0)
                elif ended:
                    break
                else:
                    await set_within(self._ended, _TAIL_SECONDS)
            for line in reader.finish():
                yield line

    async def terminate(self) -> None:
        """End it: SIGTERM to its process group, after a grace SIGKILL to all that is left."""
        self.folder.ask_to_end()
        self.watch()
        if not await set_within(self._ended, self._request.grace + _HUNG_SECONDS):
            raise RunnerUnavailable(f"Sandbox {self.id} doesn't end; its folder is {self.folder.path}")

    def close(self) -> None:
        """Watch it no longer, and let go of its folder. Who waits for it is told that the runner was left."""
        self._on_life()  # it may have ended since the loop last looked
        self._unwatch()
        self._ended.set()
        self._let_go()

    def _unwatch(self) -> None:
        if self._life >= 0:
            asyncio.get_running_loop().remove_reader(self._life)
            os.close(self._life)
            self._life = -1

    def watch(self) -> None:
        """Listen for its end."""
        if self._life >= 0 or self._ended.is_set():
            return
        life = self.folder.open_life()
        if life is None:
            self._conclude()
            return
        self._life = life
        asyncio.get_running_loop().add_reader(life, self._on_life)

    def _on_life(self) -> None:
        if self._life >= 0 and is_closed(self._life):
            self._unwatch()
            self._conclude()

    def _conclude(self) -> None:
        self._end = self.folder.end()
        self._ended.set()
        reap(self.id)

    def _known_end(self) -> SandboxEnd:
        if self._end is None:
            raise RunnerUnavailable(f"Sandbox {self.id} is no longer watched: its runner was left")
        return self._end


class ProcessRunner:
    """Makes local processes.

    Args:
        state_dir: Where sandboxes keep their folders; runners with equal ones find each other's sandboxes,
            also from another process. Default: a folder of this user's under the system's temporary one.
        inherit_environment: Whether sandboxes get this process's variables, credentials of Prefect and Modal
            excepted, or only the few that every program needs.
        grace: Seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, state_dir: Path | None = None, inherit_environment: bool = True, *, grace: float = 5.0) -> None:
        self._grace = grace
        self._state_dir = state_dir
        self._inherit = inherit_environment
        self._once: Once[tuple[str, str], tuple[ProcessSandbox, bool]] = Once(self._undo)
        self._known: weakref.WeakValueDictionary[str, ProcessSandbox] = weakref.WeakValueDictionary()

    @property
    def kind(self) -> str:
        """``process``."""
        return "process"

    @property
    def default_parallelism(self) -> int | None:
        """As many as there are cores, and two on the smallest machine."""
        return max(2, os.cpu_count() or 1)

    @property
    def state_dir(self) -> Path:
        """Where sandboxes keep their folders."""
        if self._state_dir is not None:
            return self._state_dir.absolute()
        return Path(tempfile.gettempdir()).absolute() / f"modal-prefect-{os.getuid()}"

    @cached_property
    def _state(self) -> LocalState:
        return LocalState(self.state_dir)

    async def __aenter__(self) -> ProcessRunner:
        """Raises ``SandboxRefused`` on Windows, or where this user's folder is somebody else's."""
        if sys.platform == "win32":
            raise SandboxRefused(
                "runner='process' doesn't run on Windows: it needs process groups and FIFOs. "
                "Use Linux or macOS, or the Linux of WSL (`wsl --install`)."
            )
        if not sys.executable:
            raise SandboxRefused("runner='process' needs sys.executable, which this embedded Python doesn't know.")
        reap_all()
        await asyncio.to_thread(self._state.open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folders of ended sandboxes; running ones go on, and another runner may find them."""
        await self._once.settled()
        for sandbox in list(self._known.values()):
            sandbox.close()
        self._known.clear()
        await asyncio.to_thread(self._state.tidy)
        reap_all()

    def host_command(self, *arguments: str) -> tuple[str, ...]:
        """Return the argv that runs :mod:`bridge.host` in a sandbox, with this Python."""
        return (sys.executable, "-m", "bridge.host", *arguments)

    async def start(self, request: SandboxRequest) -> ProcessSandbox:
        """Start it, or find it. A command that doesn't exist gives a sandbox whose end is NEVER_STARTED."""
        if not request.command:
            raise SandboxRefused(f"Sandbox {request.name!r} has no command")
        sandbox, _ = await self._once.make((request.app, request.name), lambda: self._make(request))
        return sandbox

    @property
    def can_call(self) -> bool:
        """On Linux."""
        return sys.platform == "linux"

    async def call(self, sandbox: Sandbox, call: HostCall) -> AsyncIterator[bytes]:
        """Ask the step host in a sandbox, through its socket: no program is started for it."""
        assert isinstance(sandbox, ProcessSandbox)
        variables = self._environment(sandbox.folder, call.environment, call.secret_environment)
        async for data in talk(sandbox.folder.work, call.socket, call.call.line(variables), sandbox.wait):
            yield data

    async def reload_volumes(self, sandbox: Sandbox) -> None:
        """Nothing to do: a local process has no volumes (:mod:`bridge.planning.ignored`)."""

    async def find(self, app: str, name: str, modal_environment: str | None = None) -> ProcessSandbox | None:
        """Return the running sandbox of that name, whoever started it. There are no environments."""
        with self._state.locked():
            folder = self._state.named(app, name)
        return self._sandbox(folder) if folder else None

    async def running(self, tags: Mapping[str, str], modal_environment: str | None = None) -> Sequence[ProcessSandbox]:
        """Return the running sandboxes that carry all of ``tags``, whichever process started them."""
        return [sandbox for sandbox, _ in await self.tagged(tags, modal_environment)]

    async def tagged(
        self, tags: Mapping[str, str], modal_environment: str | None = None
    ) -> Sequence[tuple[ProcessSandbox, Mapping[str, str]]]:
        """Return the same, each with all of its tags."""
        found: list[tuple[ProcessSandbox, Mapping[str, str]]] = []
        for folder in self._state.folders():
            request = folder.request()
            if request and tags.items() <= request.tags.items() and folder.is_alive():
                sandbox = self._sandbox(folder)
                if sandbox is not None:
                    found.append((sandbox, request.tags))
        return found

    async def by_id(self, sandbox_id: str) -> ProcessSandbox | None:
        """Return the sandbox of that id, running or ended, whoever started it; None if its folder is gone."""
        for folder in self._state.folders():
            if folder.id == sandbox_id:
                return self._sandbox(folder)
        return None

    async def _make(self, request: SandboxRequest) -> tuple[ProcessSandbox, bool]:
        stored = StoredRequest(
            app=request.app,
            name=request.name,
            command=(self._program(request.command[0]), *request.command[1:]),
            timeout=request.spec.timeout,
            grace=self._grace,
            tags=dict(request.tags),
        )
        with self._state.locked():
            running = self._state.named(request.app, request.name)
            found = self._sandbox(running) if running else None
            if found is not None:
                return found, False
            folder, life, control = self._state.create(stored)
            sandbox = self._sandbox(folder)
            assert sandbox is not None, "nobody removes the folder of a sandbox that is alive"
        try:
            _supervisors[folder.id] = await asyncio.to_thread(self._spawn, folder, life, control, request)
        except (OSError, ValueError) as error:
            raise SandboxRefused(f"Sandbox {request.name!r} can't be started: {error}") from error
        finally:
            # The supervisor has its own; if there is none, this is how the world learns of it.
            os.close(life)
            os.close(control)
        sandbox.watch()
        return sandbox, True

    async def _undo(self, made: tuple[ProcessSandbox, bool]) -> None:
        sandbox, is_new = made
        if is_new:
            await sandbox.terminate()

    def _spawn(self, folder: LocalFolder, life: int, control: int, request: SandboxRequest) -> subprocess.Popen[bytes]:
        with (folder.path / "supervisor.err").open("wb") as errors:
            return subprocess.Popen(
                # Isolated and without site: neither the user's packages nor PYTHONPATH have a say in it.
                [sys.executable, "-I", "-S", supervisor.__file__, str(folder.path), str(control)],
                cwd=folder.path,
                env=self._environment(folder, request.environment, request.secret_environment, request.not_inherited),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(life, control),
                start_new_session=True,
            )

    def _environment(
        self,
        folder: LocalFolder,
        plain: Mapping[str, str],
        secret: Mapping[str, str],
        not_inherited: Collection[str] = (),
    ) -> dict[str, str]:
        own = {
            "PYTHONUNBUFFERED": "1",
            "ZENML_CONFIG_PATH": str(folder.work / ".zenml"),
            names.ENV_WORK_DIR: str(folder.work),
        }
        ours = {name: value for name, value in os.environ.items() if name not in not_inherited}
        base = environment.inherited(ours, everything=self._inherit)
        asked = {**own, **plain, **secret}
        result = {**base, **asked, names.ENV_MODAL_SANDBOX_ID: folder.id}
        return environment.with_package(result, Path(bridge.__file__).parent.parent)

    @staticmethod
    def _program(name: str) -> str:
        return sys.executable if name in ("python", "python3") else name

    def _sandbox(self, folder: LocalFolder) -> ProcessSandbox | None:
        sandbox = self._known.get(folder.id)
        if sandbox is None:
            let_go = self._state.hold(folder)
            request = folder.request()
            if let_go is None:
                return None  # it has ended, and is gone
            if request is None:
                let_go()
                return None
            sandbox = self._known[folder.id] = ProcessSandbox(folder, request, let_go)
        return sandbox


def reap(sandbox_id: str) -> None:
    """Reap the supervisor of an ended sandbox if this process started it."""
    process = _supervisors.get(sandbox_id)
    if process is None:
        return
    try:
        # It closed its files, so it is on its last few microseconds.
        process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return  # reap_all comes round
    del _supervisors[sandbox_id]


def reap_all() -> None:
    """Reap every supervisor of this process that has ended."""
    for sandbox_id, process in list(_supervisors.items()):
        if process.poll() is not None:
            del _supervisors[sandbox_id]

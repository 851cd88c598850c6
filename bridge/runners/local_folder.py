"""The folder of one local sandbox: how runners and its supervisor find each other, across processes.

Besides what :mod:`bridge.runners.supervisor` lists it holds ``request.json``, which is the request without its
environment: that goes from process to process and never to a disk.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bridge import names
from bridge.errors import RunnerUnavailable
from bridge.flow_run.outcome import End, SandboxEnd


@dataclass(frozen=True)
class StoredRequest:
    """What is kept of a request. ``timeout`` and ``grace`` are in seconds."""

    app: str
    name: str
    command: tuple[str, ...]
    timeout: float
    grace: float
    tags: Mapping[str, str]


@dataclass(frozen=True)
class LocalFolder:
    """A sandbox's folder; its name is the sandbox's id."""

    path: Path

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.path.name

    @property
    def work(self) -> Path:
        """The sandbox's working folder."""
        return self.path / "work"

    @classmethod
    def create(cls, parent: Path, request: StoredRequest) -> tuple[LocalFolder, int, int]:
        """Make a folder, and open its ``life`` and ``control``: it counts as alive until they are closed."""
        folder = cls(parent / f"sb-local-{uuid.uuid4().hex[:22]}")
        folder.work.mkdir(mode=0o700, parents=True)
        ends = []
        for fifo in ("life", "control"):
            os.mkfifo(folder.path / fifo, 0o600)
            # For reading and writing: doesn't block, and there is no moment at which nobody holds it.
            ends.append(os.open(folder.path / fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        # Last: who sees a request may rely on the rest, and take a sandbox that isn't alive for one that has ended.
        (folder.path / "request.json").write_text(json.dumps(asdict(request)))
        return folder, ends[0], ends[1]

    def request(self) -> StoredRequest | None:
        """Return its request, or None if the folder is gone or was only half made."""
        try:
            stored = json.loads((self.path / "request.json").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return StoredRequest(**{**stored, "command": tuple(stored["command"])})

    def open_life(self) -> int | None:
        """Open what tells of the sandbox's end, or return None if it has ended. The caller closes it."""
        try:
            life = os.open(self.path / "life", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if is_closed(life):
            os.close(life)
            return None
        return life

    def is_alive(self) -> bool:
        """Whether the sandbox runs."""
        life = self.open_life()
        if life is None:
            return False
        os.close(life)
        return True

    def changed(self) -> float:
        """Return when something was last made in it, in seconds since the epoch: for an ended one, its end."""
        try:
            return self.path.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return 0.0

    def ask_to_end(self) -> None:
        """Tell the supervisor to end the sandbox, if it still runs. Raises ``RunnerUnavailable``."""
        try:
            control = os.open(self.path / "control", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENOTDIR):
                return
            raise RunnerUnavailable(f"Sandbox {self.id} can't be reached: {error}") from error
        try:
            os.write(control, b"T")
        except BlockingIOError:
            return  # full of equal wishes
        finally:
            os.close(control)

    def end(self) -> SandboxEnd:
        """Return how the ended sandbox ended: what its supervisor wrote last, or LOST."""
        try:
            end = json.loads((self.path / "end.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            kill_stragglers(self.id)
            return SandboxEnd(End.LOST, detail=f"its supervisor was killed{self._last_words()}")
        detail = str(end["detail"])
        if end["lost_bytes"]:
            lost = f"{end['lost_bytes']} bytes of its output are lost: {end['spool_error']}"
            detail = f"{detail} ({lost})" if detail else lost
        return SandboxEnd(End(end["end"]), end["exit_code"], detail)

    def _last_words(self) -> str:
        try:
            written = (self.path / "supervisor.err").read_text(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return "; its folder is gone"
        return f": {written[-500:]}" if written else ""


def is_closed(life: int) -> bool:
    """Whether nobody holds the other end any more."""
    try:
        return os.read(life, 1) == b""
    except BlockingIOError:
        return False


def kill_stragglers(sandbox_id: str) -> None:
    """Kill processes of a sandbox whose supervisor can't any more, by the MODAL_SANDBOX_ID they inherited.

    Linux only: elsewhere nothing tells them from a stranger who got their process ids since.
    """
    if sys.platform != "linux":
        return
    mark = f"{names.ENV_MODAL_SANDBOX_ID}={sandbox_id}".encode()
    for variables in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in variables.read_bytes().split(b"\0"):
                os.kill(int(variables.parent.name), signal.SIGKILL)
        except OSError:
            continue  # another user's, or gone meanwhile

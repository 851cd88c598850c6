"""The parent of one local sandbox: a small process of its own, run by file name, standard library only.

It ends the sandbox at its timeout, on request, and with its main process; always with everything that the
sandbox started. On Linux that includes what left the process group, and a killed supervisor takes its sandbox
along; elsewhere the process group is all there is, and a sandbox whose supervisor was killed goes on.

It outlives the flow, so that a flow that comes back finds the sandbox, its output and its end. Nobody needs
its process id, which could be somebody else's by the time it is used: it is reached through two FIFOs in the
sandbox's folder, which the starter opened before anyone could see them and which close with this process.

``life``     held open for writing; a reader sees end-of-file when this process is gone, however it went.
``control``  a byte written here asks for termination.
``end.json`` how the sandbox ended; written before ``life`` closes. Without it the sandbox is lost.
``output-*`` what it wrote, see :mod:`bridge.runners.spool`.
``work``     the sandbox's working folder, removed at its end.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

FRAME = struct.Struct(">BdI")
"""Stream (1 or 2), seconds since the epoch, length of what follows."""
SEGMENT_BYTES = 8 << 20
SEGMENTS = 8
"""Most segments kept: the first, and the newest of the others. 64 MiB a sandbox."""
CHUNK = 1 << 16
REAP_SECONDS = 5.0
DRAIN_SECONDS = 2.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


class Spool:
    """The output on disk, bounded: of more than ``SEGMENTS`` segments the oldest but the first is dropped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[int] = []
        self._next = 0
        self._size = SEGMENT_BYTES
        self._file = -1
        self.lost = 0
        self.error = ""

    def write(self, stream: int, data: bytes) -> None:
        """Append. A full disk costs the output, never the step."""
        frame = FRAME.pack(stream, time.time(), len(data)) + data
        try:
            if self._size + len(frame) > SEGMENT_BYTES:
                self._open_next()
            if os.write(self._file, frame) < len(frame):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.lost += len(data)
            self.error = str(error)
            if self._file >= 0:
                os.ftruncate(self._file, self._size)  # no half frames
        else:
            self._size += len(frame)

    def _open_next(self) -> None:
        path = self._folder / f"output-{self._next:08d}"
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = opened
        self._size = 0
        self._kept.append(self._next)
        self._next += 1
        if len(self._kept) > SEGMENTS:
            (self._folder / f"output-{self._kept.pop(1):08d}").unlink()


class Supervisor:
    """Runs the command of one sandbox to its end. Times are in seconds."""

    def __init__(self, folder: Path, control: int) -> None:
        request = json.loads((folder / "request.json").read_text())
        self._folder = folder
        self._command: list[str] = request["command"]
        self._timeout: float = request["timeout"]
        self._grace: float = request["grace"]
        self._control = control
        self._spool = Spool(folder)
        self._selector = selectors.DefaultSelector()
        self._main = 0
        self._code: int | None = None
        self._reason = ""
        self._detail = ""
        self._killed = False
        self._deadline = time.monotonic() + self._timeout

    def run(self) -> None:
        """Run it, and leave ``end.json`` behind."""
        kills_before = oom_kills()
        try:
            self._listen()
            if self._start():
                while self._code is None:
                    self._turn()
                self._kill_the_rest()
                self._drain()
            self._conclude(kills_before)
        finally:
            shutil.rmtree(self._folder / "work", ignore_errors=True)

    def _listen(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for wish in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(wish, self._on_signal)
        self._selector.register(reader, selectors.EVENT_READ, "wake")
        os.set_blocking(self._control, False)
        self._selector.register(self._control, selectors.EVENT_READ, "control")
        prctl(PR_SET_CHILD_SUBREAPER, 1)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._end_it("terminated", f"its supervisor received {signal.Signals(number).name}")

    def _start(self) -> bool:
        try:
            process = subprocess.Popen(
                self._command,
                cwd=self._folder / "work",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
            )
        except (OSError, ValueError) as error:
            self._reason, self._detail = "never started", f"{self._command[0]}: {error}"
            return False
        assert process.stdout is not None
        assert process.stderr is not None
        self._main = process.pid
        process.returncode = 0  # reaped here, with everybody else
        for pipe, stream in ((process.stdout, 1), (process.stderr, 2)):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, stream)
        return True

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._deadline and not self._killed:
            if self._reason:
                self._signal_group(signal.SIGKILL)
                self._killed = True
            else:
                self._end_it("timed out", f"after {self._timeout:g} s")
        self._read(None if self._killed else max(0.0, self._deadline - time.monotonic()))
        self._reap()

    def _end_it(self, reason: str, detail: str) -> None:
        if self._reason or self._code is not None:
            return
        self._reason, self._detail = reason, detail
        self._deadline = time.monotonic() + self._grace
        if self._main:
            self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self._main, number)
        except ProcessLookupError:
            return  # gone already
        except PermissionError as error:
            # macOS says so of zombies too; on Linux somebody in the group has become another user.
            self._detail = f"{self._detail} (a process could not be signalled: {error})".strip()

    def _read(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            try:
                data = os.read(key.fd, CHUNK)
            except BlockingIOError:
                continue
            if key.data == "control" and data:
                self._end_it("terminated", "")
            elif isinstance(key.data, int) and data:
                self._spool.write(key.data, data)
            elif isinstance(key.data, int):
                self._selector.unregister(key.fileobj)

    def _reap(self) -> bool:
        """Reap whoever has ended; say whether children are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._main:
                self._code = os.waitstatus_to_exitcode(status)

    def _kill_the_rest(self) -> None:
        # As a subreaper (Linux) this process inherits orphans, also those that left the group: it is done
        # when it has no children any more. Elsewhere the group is all that can be found.
        give_up = time.monotonic() + REAP_SECONDS
        while time.monotonic() < give_up:
            children = self._reap()
            if not children and not group_exists(self._main):
                return
            self._signal_group(signal.SIGKILL)
            for pid in children_of(os.getpid()):
                kill(pid)
            self._read(0.02)
        self._detail = f"{self._detail} (some of its processes could not be killed)".strip()

    def _drain(self) -> None:
        give_up = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < give_up and any(
            isinstance(key.data, int) for key in self._selector.get_map().values()
        ):
            self._read(0.1)

    def _conclude(self, kills_before: int) -> None:
        end = self._reason or "exited"
        if not self._reason and self._code == -signal.SIGKILL and oom_kills() > kills_before:
            end, self._detail = "out of memory", "the kernel killed it: its control group ran out of memory"
        conclusion = {
            "end": end,
            "exit_code": self._code,
            "detail": self._detail,
            "lost_bytes": self._spool.lost,
            "spool_error": self._spool.error,
        }
        partial = self._folder / "end.json.partial"
        partial.write_text(json.dumps(conclusion))
        partial.replace(self._folder / "end.json")


def prctl(option: int, value: int) -> None:
    """Set a process attribute where there are any: Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies: nobody would be left to enforce its timeout."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(1)  # it died before it was asked


def kill(pid: int) -> None:
    """Kill a child of this process; it may be gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # the caller sees whether it is still there


def group_exists(group: int) -> bool:
    """Whether a process group has members, zombies included."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return sys.platform == "linux"  # macOS: only zombies are left, and they are not ours
    return True


def children_of(parent: int) -> list[int]:
    """Return the children of a process, from ``/proc``; none where there is no ``/proc``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # proc(5): the name is in parentheses and may hold anything; then the state and the parent.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory, as far as it says.

    Sources: the kernel's admin-guide, cgroup-v2 (``memory.events``: ``oom_kill``) and cgroup-v1/memory
    (``memory.oom_control``: ``oom_kill``).
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    total = 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            place, name = Path("/sys/fs/cgroup"), "memory.events"
        elif "memory" in controllers.split(","):
            place, name = Path("/sys/fs/cgroup/memory"), "memory.oom_control"
        else:
            continue
        try:
            counters = dict(row.split() for row in (place / path.lstrip("/") / name).read_text().splitlines())
        except (OSError, ValueError):
            continue  # not mounted, or seen from another namespace
        total += int(counters.get("oom_kill", 0))
    return total


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1]), int(sys.argv[2])).run()

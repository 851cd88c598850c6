"""The process that forks: single-threaded, ZenML imported, store and stack open, no connection.

A fork copies one thread and every lock, so nothing but the thread that forks may exist; that is why the zygote
is a process apart from the one that schedules, reads output and talks to ZenML. It takes commands from one
socket and tells events on another; it never blocks on a child. It ends with the process at the other end of its
sockets, and takes the children with it.

Linux only (:data:`SUPPORTED`): macOS's system libraries don't survive a fork without exec.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass

from bridge.host.attempt import Attempt, Streams

SUPPORTED = sys.platform == "linux"

_HEADER = struct.Struct("!I")
_FILES = 4
"""Sent with each attempt: :class:`bridge.host.attempt.Streams`."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Blocked in the zygote: a signal to the whole process group is the scheduler's to answer, and one that reaches
a child before it is ready waits for it."""


def send_start(commands: socket.socket, key: int, attempt: Attempt, streams: Streams) -> None:
    """Ask the zygote to fork. Raises ``OSError`` if it is gone."""
    _send(commands, {"key": key, "attempt": asdict(attempt)}, (streams.stdout, streams.stderr, *streams.reading))


def send_signal(commands: socket.socket, key: int, number: int) -> None:
    """Ask the zygote to signal a child that hasn't ended. Raises ``OSError`` if it is gone."""
    _send(commands, {"key": key, "signal": number})


def _send(commands: socket.socket, message: object, files: tuple[int, ...] = ()) -> None:
    body = json.dumps(message).encode()
    header = _HEADER.pack(len(body))
    if files:
        commands.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
    else:
        commands.sendall(header)
    commands.sendall(body)


def _receive(commands: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """The next command and its file descriptors; None at the end of the stream."""
    header, files, _, _ = socket.recv_fds(commands, _HEADER.size, _FILES)
    if not header:
        return None
    header += _exactly(commands, _HEADER.size - len(header))
    message: dict[str, object] = json.loads(_exactly(commands, _HEADER.unpack(header)[0]))
    return message, files


def _exactly(commands: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = commands.recv(min(length, 1 << 20))
        if not part:
            raise EOFError("The scheduler went away in the middle of a command")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Forked:
    """What :func:`serve` returns in a child: it is ready to run this."""

    attempt: Attempt


class Zygote:
    """Forks and reaps. Made and used in the zygote process only."""

    def __init__(self, commands: socket.socket, events: socket.socket) -> None:
        self._commands = commands
        self._events = events
        self._children: dict[int, int] = {}
        self._wake, self._wake_writer = os.pipe()

    def serve(self) -> Forked | None:
        """Serve until the scheduler is gone, then return None; in each child return what it has to run."""
        self._listen()
        try:
            while True:
                ready, _, _ = select.select([self._commands.fileno(), self._wake], [], [])
                if self._wake in ready:
                    os.read(self._wake, 4096)
                    self._reap()
                if self._commands.fileno() in ready:
                    command = _receive(self._commands)
                    if command is None:
                        break
                    forked = self._obey(*command)
                    if forked is not None:
                        return forked
        except (EOFError, OSError) as error:
            sys.stderr.write(f"The step host lost its scheduler: {error}\n")
        except BaseException:
            self._kill_all()
            raise
        self._kill_all()
        return None

    def _listen(self) -> None:
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wake_writer, False)
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _obey(self, message: dict[str, object], files: list[int]) -> Forked | None:
        key = message["key"]
        assert isinstance(key, int)
        number = message.get("signal")
        if isinstance(number, int):
            for pid, known in self._children.items():
                if known == key:
                    _signal_group(pid, number)
            return None
        attempt = message["attempt"]
        assert isinstance(attempt, dict)
        try:
            return self._fork(key, Attempt(**attempt), files)
        finally:
            for file in files:
                if file > 2:
                    os.close(file)

    def _fork(self, key: int, attempt: Attempt, files: list[int]) -> Forked | None:
        sys.stdout.flush()
        sys.stderr.flush()
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(key, ended=-signal.SIGKILL, error=f"fork: {error}")
            return None
        if pid:
            # Here and in the child: whoever comes first, the group exists before anybody signals it.
            _make_group(pid)
            self._children[pid] = key
            self._tell(key, pid=pid)
            return None
        try:
            self._become_child(zygote, files)
        except BaseException as error:
            # Nothing of the zygote's may run on in a child that isn't ready, least of all its killing.
            os.write(2, f"The step host's child isn't ready: {error!r}\n".encode())
            os._exit(70)
        return Forked(attempt)

    def _become_child(self, zygote: int, files: list[int]) -> None:
        _make_group(0)
        die_with_parent(zygote)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._commands.close()
        self._events.close()
        os.close(self._wake)
        os.close(self._wake_writer)
        nothing = os.open(os.devnull, os.O_RDONLY)
        stdout, stderr, *reading = files
        for source, target in zip((nothing, stdout, stderr), (0, 1, 2), strict=True):
            os.dup2(source, target)
        for end in reading:
            os.dup(end)  # what was sent is closed once this child is ready
        os.close(nothing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)

    def _reap(self) -> None:
        while self._children:
            # Seen, not yet reaped: its process id still is its own while the rest of its group is killed.
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is None:
                return
            _signal_group(seen.si_pid, signal.SIGKILL)
            _, status = os.waitpid(seen.si_pid, 0)
            key = self._children.pop(seen.si_pid, None)
            if key is not None:
                self._tell(key, ended=os.waitstatus_to_exitcode(status))

    def _tell(self, key: int, **what: int | str) -> None:
        self._events.sendall(json.dumps({"key": key, **what}).encode() + b"\n")

    def _kill_all(self) -> None:
        for pid in self._children:
            _signal_group(pid, signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, the thread that forked it, ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def _make_group(pid: int) -> None:
    try:
        os.setpgid(pid, pid)
    except (PermissionError, ProcessLookupError):
        # The other side has done it and gone on: to exec, or to its end.
        return


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return

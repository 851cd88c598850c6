"""One real process with its pipes: the body of a sandbox, or of an exec in one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import psutil

CHUNK = 64 * 1024
PIPE_DRAIN = 2.0
"""Seconds to wait for the pipes to close after the process group was killed: a grandchild in a session of its own
may hold them."""


class Output:
    """What a stream has written so far, kept whole and readable from any offset."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self._changed = asyncio.Event()

    def feed(self, data: bytes) -> None:
        self.data += data
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """Yield ``(offset, bytes)``, never empty, until the stream has ended."""
        while True:
            if offset < len(self.data):
                data = bytes(self.data[offset : offset + CHUNK])
                yield offset, data
                offset += len(data)
            elif self.ended:
                return
            else:
                await self._changed.wait()


class _Pipe(asyncio.Protocol):
    def __init__(self, output: Output) -> None:
        self._output = output
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._output.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class RealProcess:
    """A process in a session and group of its own. Made by :meth:`start`, on the server's loop."""

    def __init__(self, popen: subprocess.Popen[bytes], stdout: Output, stderr: Output) -> None:
        self._popen = popen
        self.stdout = stdout
        self.stderr = stderr
        self._pipes: list[_Pipe] = []
        self._transports: list[asyncio.BaseTransport] = []
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], cwd: Path, stdout: Output, stderr: Output
    ) -> RealProcess:
        """Raises ``OSError`` if there is no such program."""
        loop = asyncio.get_running_loop()
        popen = await loop.run_in_executor(
            None,
            lambda: subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            ),
        )
        self = cls(popen, stdout, stderr)
        for stream, output in ((popen.stdout, stdout), (popen.stderr, stderr)):
            transport, protocol = await loop.connect_read_pipe(lambda output=output: _Pipe(output), stream)  # type: ignore[misc]
            self._transports.append(transport)
            self._pipes.append(protocol)
        self._watch(loop)
        return self

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        # asyncio's own child watcher is one thread for each process before Python 3.12.
        if sys.platform == "linux":
            descriptor = os.pidfd_open(self._popen.pid)

            def ended() -> None:
                loop.remove_reader(descriptor)
                os.close(descriptor)
                self._exited.set_result(self._popen.wait())

            loop.add_reader(descriptor, ended)
            return

        def wait() -> None:
            code = self._popen.wait()
            loop.call_soon_threadsafe(self._exited.set_result, code)

        threading.Thread(target=wait, daemon=True).start()

    async def wait(self) -> int:
        """Return the exit code of the process itself, negative for a signal."""
        return await asyncio.shield(self._exited)

    def signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        if not self._exited.done():
            self._popen.send_signal(number)

    def write(self, data: bytes, eof: bool) -> None:
        assert self._popen.stdin is not None
        if data:
            self._popen.stdin.write(data)
        if eof:
            self._popen.stdin.close()

    async def finish(self) -> None:
        """Kill whatever of its group is left and take in the rest of the output."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self._popen.pid, signal.SIGKILL)
        await self.wait()
        await asyncio.wait([pipe.closed for pipe in self._pipes], timeout=PIPE_DRAIN)
        while group_is_alive(self._popen.pid):  # noqa: ASYNC110 - nobody tells of its end
            await asyncio.sleep(0.005)
        for transport in self._transports:
            transport.close()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        self.stdout.end()
        self.stderr.end()


def group_is_alive(group: int) -> bool:
    """Whether a process group has a process that isn't just waiting to be reaped."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False

"""What a step's process writes, read by its host as it comes. Standard library only."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from bridge.awaiting import set_within
from bridge.host.attempt import Streams

_CHUNK = 1 << 16


class Pipe:
    """One stream: ``take`` gets what is written to it, ``over`` is called once nothing more is read. One event loop."""

    def __init__(self, take: Callable[[bytes], object], over: Callable[[], object] = lambda: None) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._take = take
        self._over = over
        self._closed = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.reader, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self.reader, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._take(data)
        else:
            self._close()

    def _close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            asyncio.get_running_loop().remove_reader(self.reader)
            os.close(self.reader)
            self._over()

    async def drain(self, seconds: float) -> None:
        """Read what is left; at most ``seconds``, since a daemon of the step may hold the pipe open."""
        if not await set_within(self._closed, seconds):
            self._close()


def streams(stdout: Pipe, stderr: Pipe) -> Streams:
    """Return what an attempt gets of its two pipes."""
    return Streams(stdout.writer, stderr.writer, (stdout.reader, stderr.reader))

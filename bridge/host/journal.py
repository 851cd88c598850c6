"""The output and the end of one attempt, kept in its sandbox, bounded. Standard library only.

Files hold frames as :mod:`bridge.host.wire` sends them, so following is copying. Each file is named by the
position at which it begins. Of more than :data:`FILES` files the first and the newest are kept, of all attempts that
have ended together :data:`EARLIER_BYTES`, the newest ones'. The end stays in memory: a full disk may cost output,
never the step.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bridge.host.wire import END, HEAD

FILE_BYTES = 8 << 20
FILES = 8
"""64 MiB an attempt, as for a sandbox of the process runner."""
EARLIER_BYTES = FILES * FILE_BYTES
"""What is kept of all attempts before the one that runs, together."""
_CHUNK = 1 << 16


class Journal:
    """Written and followed on one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True)
        self._starts: list[int] = []
        self._file = -1
        self._changed = asyncio.Event()
        self.position = 0
        """Where what was written so far ends."""
        self._end: bytes | None = None
        self.lost = 0
        """Bytes of output that couldn't be written."""

    @property
    def ended(self) -> bool:
        """Whether the attempt has ended."""
        return self._end is not None

    def write(self, kind: int, body: bytes) -> None:
        """Append output."""
        position = self.position + HEAD.size + len(body)
        frame = HEAD.pack(kind, time.time(), position, len(body)) + body
        try:
            if not self._starts or position - self._starts[-1] > FILE_BYTES:
                self._open_next()
            if os.write(self._file, frame) < len(frame):
                os.ftruncate(self._file, self.position - self._starts[-1])  # no half frames
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.lost += len(body)
            return
        self.position = position
        self._wake()

    def end(self, body: bytes) -> None:
        """Write the last frame: how the attempt ended."""
        self._end = HEAD.pack(END, time.time(), self.position, len(body)) + body
        self._wake()

    def _open_next(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        opened = os.open(self._path(self.position), flags, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = opened
        self._starts.append(self.position)
        if len(self._starts) > FILES:
            self._path(self._starts.pop(1)).unlink(missing_ok=True)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, position: int) -> AsyncIterator[bytes]:
        """Yield everything from ``position`` on, while it is written, to the end of the attempt."""
        while True:
            if position < self.position:
                there = self.position
                start = max((start for start in self._starts if start <= position), default=None)
                pieces = self._read(start, position) if start is not None else None
                for data in pieces or ():
                    position += len(data)
                    yield data
                if pieces:
                    continue  # while the reader took them more may have been written, into the same file too
                # Between this file and the next one that is left, some may be gone, or this one was.
                later = min((other for other in self._starts if start is None or other > start), default=there)
                position = max(position, later)
            elif self._end is not None:
                yield self._end
                return
            else:
                await self._changed.wait()

    def _read(self, start: int, position: int) -> list[bytes] | None:
        """The rest of a file; None where it is gone: a step may have emptied its folder. The positions tell of it."""
        try:
            with self._path(start).open("rb") as file:
                file.seek(position - start)
                # All of it at once, since it may be dropped while a slow reader takes it.
                return list(iter(lambda: file.read(_CHUNK), b""))
        except FileNotFoundError:
            return None

    def _path(self, start: int) -> Path:
        return self._folder / f"output-{start:020d}"

    def shrink(self) -> None:
        """Keep no more than the newest file; for an attempt that has ended."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        while len(self._starts) > 1:
            self._path(self._starts.pop(0)).unlink(missing_ok=True)

    @property
    def kept(self) -> int:
        """How many bytes :meth:`shrink` has left."""
        return self.position - self._starts[0] if self._starts else 0

    def drop(self) -> None:
        """Keep nothing but the end, of an attempt that was shrunk."""
        while self._starts:
            self._path(self._starts.pop()).unlink(missing_ok=True)

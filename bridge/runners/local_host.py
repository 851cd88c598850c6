"""Talking to the step host of a local sandbox through its Unix socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.errors import RunnerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridge.flow_run.outcome import SandboxEnd

_PAUSE_SECONDS = 0.02
"""Between two looks for a socket that isn't there yet: nothing tells of a listener."""
_CHUNK = 1 << 16


async def talk(folder: Path, name: str, line: bytes, end: Callable[[], Awaitable[SandboxEnd]]) -> AsyncIterator[bytes]:
    """Send ``line`` to the host that listens in ``folder`` and yield its answer. Raises ``RunnerUnavailable``.

    ``end`` waits for the end of the sandbox, after which nobody will listen any more.
    """
    ended = asyncio.ensure_future(end())
    try:
        reader, writer = await _connect(folder, name, ended)
        try:
            writer.write(line)
            await writer.drain()
            while data := await reader.read(_CHUNK):
                yield data
        finally:
            writer.close()
    except OSError as error:
        raise RunnerUnavailable(f"The step host in {folder} can't be reached: {error}") from error
    finally:
        ended.cancel()


async def _connect(
    folder: Path, name: str, ended: asyncio.Future[SandboxEnd]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            with _short(folder) as short:
                return await asyncio.open_unix_connection(f"{short}/{name}")
        except (FileNotFoundError, ConnectionRefusedError):
            if ended.done():
                raise
        await asyncio.wait({ended}, timeout=_PAUSE_SECONDS)


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path of a folder that is short enough for a socket's, which takes 107 bytes. Linux."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)

"""Attempts as forks of a process that has ZenML open: 0.4 s each instead of 6.5 (``docs/``, warm sandboxes).

:func:`split` forks the zygote off; :class:`ForkHost` is the scheduler's end of it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import threading
from dataclasses import dataclass, field

from bridge.host.attempt import Attempt, Streams
from bridge.host.zygote import SUPPORTED, Forked, Zygote, send_signal, send_start


class NoFork(Exception):
    """Forking isn't possible, or not safe, here. The message says why."""


@dataclass(frozen=True, slots=True)
class Link:
    """The scheduler's ends of the two sockets, and the zygote's process id."""

    commands: socket.socket
    events: socket.socket
    pid: int


def split(*private: socket.socket) -> Link | Forked | None:
    """Fork the zygote off. Returns the link to it; in its children what they run; None in the zygote at its end.

    Call it with everything loaded that the children shall share, and no thread running. ``private`` sockets are
    closed in the zygote. Raises ``NoFork``.
    """
    if not SUPPORTED:
        raise NoFork("this operating system's libraries don't survive a fork")
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threads:
        raise NoFork(f"threads are running: {', '.join(threads)}")
    commands, commands_there = socket.socketpair()
    events, events_there = socket.socketpair()
    gc.freeze()  # what is loaded stays out of collections, so children don't copy its pages
    pid = os.fork()
    if pid:
        commands_there.close()
        events_there.close()
        gc.unfreeze()
        return Link(commands, events, pid)
    for mine in (commands, events, *private):
        mine.close()
    return Zygote(commands_there, events_there).serve()


@dataclass(eq=False)
class _Child:
    """One forked attempt."""

    key: int
    host: ForkHost
    started: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def pid(self) -> int:
        return self.started.result()

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def signal(self, number: int) -> None:
        if not self.ended.done():
            self.host.signal(self.key, number)


class ForkHost:
    """Starts attempts through a zygote. One event loop; the class is a :class:`bridge.host.attempt.StepHost`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._children: dict[int, _Child] = {}
        self._keys = 0
        self._reader: asyncio.Task[None] | None = None
        self.gone = False
        """Whether the zygote has died: then nothing can be started, and what ran is dead."""

    async def start(self, attempt: Attempt, streams: Streams) -> _Child:
        """Fork for an attempt. Raises ``NoFork`` if the zygote is gone."""
        if self._reader is None:
            self._reader = asyncio.ensure_future(self._read())
        self._keys += 1
        child = self._children[self._keys] = _Child(self._keys, self)
        try:
            if self.gone:
                raise NoFork("the process that forks has died")
            send_start(self._link.commands, child.key, attempt, streams)
        except (NoFork, OSError) as error:
            del self._children[child.key]
            raise NoFork(str(error)) from error
        await asyncio.wait({child.started, child.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not child.started.done():
            raise NoFork("the process that forks couldn't")
        return child

    def signal(self, key: int, number: int) -> None:
        """Signal the group of a child. Where the zygote is gone the child is, too."""
        try:
            send_signal(self._link.commands, key, number)
        except ConnectionError:
            self.gone = True

    async def _read(self) -> None:
        reader, _writer = await asyncio.open_unix_connection(sock=self._link.events)
        while line := await reader.readline():
            event = json.loads(line)
            child = self._children[event["key"]]
            if "pid" in event:
                child.started.set_result(event["pid"])
            if "ended" in event:
                del self._children[child.key]
                child.ended.set_result(event["ended"])
        self.gone = True
        for child in self._children.values():
            child.ended.set_result(-signal.SIGKILL)
        self._children.clear()

    async def close(self) -> None:
        """End the zygote."""
        self._link.commands.close()
        if self._reader is not None:
            await self._reader
        await asyncio.get_running_loop().run_in_executor(None, os.waitpid, self._link.pid, 0)

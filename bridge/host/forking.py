"""Attempts as forks of a process that has ZenML open: 0.4 s each instead of 6.5 (``docs/``, warm sandboxes).

:func:`split` forks the zygote off; :class:`ForkHost` is the scheduler's end of it; :func:`host_of` is that, or what
does its work where forking isn't possible.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from bridge.host.attempt import Attempt, StepCommand, StepHost, Streams
from bridge.host.zygote import SUPPORTED, Zygote, send_signal, send_start

if TYPE_CHECKING:
    from bridge.host.preload import Loaded

_logger = logging.getLogger(__name__)


class NoFork(Exception):
    """Forking isn't possible, or not safe, here. The message says why."""


@dataclass(frozen=True, slots=True)
class Link:
    """The scheduler's ends of the two sockets, and the zygote's process id."""

    commands: socket.socket
    events: socket.socket
    pid: int


def host_of(loaded: Loaded, command: StepCommand, *private: socket.socket) -> StepHost:
    """Return what starts the steps of a run: forks of this process, or, where that isn't possible, programs.

    Returns in the process that calls it only, as :func:`split` does; ``command`` and ``private`` as there and in
    :class:`bridge.host.spawning.SpawnHost`.
    """
    from bridge.host import child, preload

    try:
        if loaded.stack is None:
            raise NoFork(loaded.why_no_stack)
        preload.disconnect()
        return ForkHost(split(lambda attempt: child.run(attempt, loaded, command), *private))
    except Exception as error:
        return spawning(error, command)


def spawning(because: Exception, command: StepCommand) -> StepHost:
    """Return what starts each step as a program, and say why it isn't forked."""
    from bridge.host.spawning import SpawnHost

    # Whatever it is: a step in a process of its own meets it again, and then it is that step's failure.
    _logger.warning("Each step gets a process of its own: %s.", str(because) or type(because).__name__)
    return SpawnHost(command)


def split(run: Callable[[Attempt], NoReturn], *private: socket.socket) -> Link:
    """Fork the zygote off, whose children do ``run``, and return the link to it. Returns in no other process.

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
    # Neither an end nor an exception of it comes back to the caller, who would become a second scheduler, or take
    # away what is the first one's: what is left to flush and close is that one's, too.
    code = 1
    try:
        for mine in (commands, events, *private):
            mine.close()
        forked = Zygote(commands_there, events_there).serve()
        if forked is not None:
            run(forked.attempt)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


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

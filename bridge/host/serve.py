"""``python -m bridge.host serve``: the step host. ZenML opened once, then a process for each step that it is asked for.

Listens on a Unix socket before it loads anything, so whoever calls early waits in line; speaks
:mod:`bridge.host.wire`. One step at a time: each has what its sandbox has. A step is a fork of this program with
everything loaded (:mod:`bridge.host.forking`), or, where that isn't possible, a process of its own; one log line
says so. Nothing of the user's code is imported here, and CUDA is never touched.

Ends with 0 on SIGTERM (its step gets it first), after :attr:`Options.idle_timeout` seconds in which nobody wanted
anything, when its flow is gone (:mod:`bridge.host.orphan`), and when what forks has died.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridge.flow_run.outcome import TOKEN_REFUSED
from bridge.host import wire

if TYPE_CHECKING:
    from bridge.host.attempt import StepCommand, StepHost

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. ``socket`` is the name of the socket's file; ``idle_timeout`` is in seconds. ``each`` is
    the command as which each step is run: ``operated`` for a step operator, whose steps come with their step runs."""

    snapshot_id: str
    run_id: str
    socket: str
    idle_timeout: float
    each: StepCommand = "step"


def main(options: Options) -> int:
    """Serve, and return the exit code. Never returns in a forked child, nor in the process that forks."""
    logging.getLogger("bridge").setLevel(logging.INFO)
    listener = listen(options.socket)
    try:
        host = _host(options, listener)
        gc.enable()
        return asyncio.run(_serve(options, listener, host))
    finally:
        folder, name = wire.socket_path(options.socket)
        path = os.path.join(folder, name)
        if os.path.exists(path):
            os.unlink(path)


def listen(name: str) -> socket.socket:
    """Make the socket, for this user alone."""
    folder, file = wire.socket_path(name)
    os.makedirs(folder, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        wire.in_folder(folder, "bind", listener, file)
    finally:
        os.umask(before)
    listener.listen()
    return listener


def _host(options: Options, listener: socket.socket) -> StepHost:
    """Load ZenML and fork the process that forks, or return what starts processes of their own."""
    from bridge.host import forking, preload

    try:
        loaded = preload.load(options.snapshot_id, options.run_id)
    except Exception as error:
        return forking.spawning(error, options.each)
    return forking.host_of(loaded, options.each, listener)


async def _serve(options: Options, listener: socket.socket, host: StepHost) -> int:
    from bridge.host import orphan
    from bridge.host.turns import Turns

    folder = tempfile.mkdtemp(prefix="steps-", dir=wire.socket_path(options.socket)[0])
    turns = Turns(options.snapshot_id, host, folder, options.idle_timeout)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, turns.stop)
    orphan.watch(
        turns.running_steps,
        lambda: loop.call_soon_threadsafe(turns.stop),
        cut_off=lambda: loop.call_soon_threadsafe(turns.cut_off, TOKEN_REFUSED),
    )
    server = await asyncio.start_unix_server(turns.answer, sock=listener, limit=wire.MOST_CALL_BYTES)
    _logger.info("The step host is ready.")
    try:
        await turns.over()
    finally:
        server.close()
        await turns.close()
    return 0

"""What the flow and the step host say to each other. Standard library only: the client in a sandbox imports it.

The flow opens a connection to the host's Unix socket, directly or through :mod:`bridge.host.client`, writes one
line of JSON (:class:`Call`, with the environment of the step), and reads frames until the host closes it. A frame
is :data:`HEAD` and a body. ``position`` counts the bytes of output and ends of one attempt up to and including
that frame: a reader whose connection broke calls again with the last position it has, and misses nothing that the
journal (:mod:`bridge.host.journal`) still has. A jump in positions is what was left out. That of the first frame,
``ACCEPTED``, is how far the output goes by now; its body is :data:`OVER` where the attempt has ended.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from bridge import names

HEAD = struct.Struct("!BdQI")
"""Kind, seconds since the epoch, position after the frame, length of the body."""
STDOUT, STDERR, END, ACCEPTED, REFUSED = 1, 2, 3, 4, 5
OVER = b"over"
"""The body of ``ACCEPTED`` where the attempt has ended: its end follows."""
WHAT_RUNS = ""
"""The key of a call that runs nothing: the host answers with one frame, whose body are the keys that it knows, the
newest last, with spaces between."""
MOST_CALL_BYTES = 4 << 20
"""Longest call; Linux itself takes 2 MiB of arguments and environment."""
FOLDER = "/var/tmp"
"""Where the host of a sandbox without a working folder of its own has its socket, and what it keeps. Not the temporary
folder: which one that is a step's variables say, and whoever calls has those; and steps empty it."""


@dataclass(frozen=True, slots=True)
class Call:
    """Run this attempt, or, where the host knows its ``key`` already, tell what became of it.

    ``timeout`` is in seconds, None for no limit of its own. ``position`` is how much of its output is known.
    """

    key: str
    step: str
    step_run_id: str | None = None
    timeout: float | None = None
    position: int = 0

    def line(self, environment: Mapping[str, str]) -> bytes:
        """Return the line that asks for it."""
        return json.dumps({"call": asdict(self), "environment": dict(environment)}).encode() + b"\n"

    def text(self) -> str:
        """Return it without an environment, for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Call:
        """Read what :meth:`text` wrote. Raises ``ValueError``, ``TypeError``."""
        return cls(**json.loads(text))

    @classmethod
    def of_line(cls, line: bytes) -> tuple[Call, dict[str, str]]:
        """Read a line. Raises ``ValueError``, ``KeyError``, ``TypeError``."""
        read = json.loads(line)
        return cls(**read["call"]), read["environment"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One thing that the host says."""

    kind: int
    seconds: float
    position: int
    body: bytes


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes and yield the frames that they complete."""
        data = self._rest + data
        start = 0
        while len(data) - start >= HEAD.size:
            kind, seconds, position, length = HEAD.unpack_from(data, start)
            end = start + HEAD.size + length
            if len(data) < end:
                break
            yield Frame(kind, seconds, position, data[start + HEAD.size : end])
            start = end
        self._rest = data[start:]


def socket_path(name: str) -> tuple[str, str]:
    """Return the folder and the file of a host's socket, seen from inside its sandbox."""
    return os.environ.get(names.ENV_WORK_DIR) or FOLDER, name


def in_folder(folder: str, act: str, connection: socket.socket, name: str) -> None:
    """Bind or connect a socket in a folder whose path may be longer than the 107 bytes a socket's may have.

    Raises ``OSError``. Changes the working folder for a moment: for single-threaded programs.
    """
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        (connection.bind if act == "bind" else connection.connect)(name)
    finally:
        os.fchdir(before)
        os.close(before)

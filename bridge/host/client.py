"""Asks the step host of this sandbox, and copies its answer to stdout: ``python client.py SOCKET CALL``.

Run by file name through an ``exec`` into the sandbox, as ``python -I -S``. Standard library only, and nothing of
ZenML: it is ready in a few hundredths of a second. The environment of the exec, secrets included, becomes that of
the step. Exits with 0 once the host has said everything, 2 where there is no host.
"""

import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bridge.host import wire

PATIENCE_SECONDS = 60.0
"""How long a host may take from its start to where it listens: an interpreter's start on a slow machine."""
_PAUSE_SECONDS = 0.02


def connect(name: str, patience: float = PATIENCE_SECONDS) -> socket.socket:
    """Connect to the host of this sandbox. Raises ``OSError`` when there is none for ``patience`` seconds."""
    folder, file = wire.socket_path(name)
    deadline = time.monotonic() + patience
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            wire.in_folder(folder, "connect", connection, file)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)  # nothing tells of a listener
        else:
            return connection


def main(argv: list[str]) -> int:
    """Ask, and copy; return the exit code."""
    name, call = argv
    try:
        connection = connect(name)
        with connection:
            connection.sendall(wire.Call.of_text(call).line(os.environ))
            while data := connection.recv(1 << 16):
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
    except OSError as error:
        sys.stderr.write(f"The step host can't be reached: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""A process that ends with the one that started it, where the kernel doesn't see to that. Standard library only."""

from __future__ import annotations

import os
import signal
import threading


def hold(file: int) -> None:
    """Kill this process's group when the other end of the pipe ``file`` is closed: its holder has died.

    The holder never writes. Call it in the leader of a group of its own.
    """

    def watch() -> None:
        os.read(file, 1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()

"""What a process is doing, asked a hundred times a second from a thread beside: which files each thread is in.

Wall time is what is wanted, of all threads, until a moment that is known only afterwards; no profiler gives that.
"""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType

EVERY_SECONDS = 0.01


class Samples:
    """Use as ``with``. ``taken`` has, for each sample, its time and the stack of each thread, outermost first.

    A stack is a list of ``"file:function"``; stacks are kept once, and named by their number in ``stacks``.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._take, name="sampling", daemon=True)
        self._stacks: dict[tuple[str, ...], int] = {}
        self._at: list[tuple[float, dict[str, int]]] = []

    @property
    def taken(self) -> dict[str, object]:
        """All of it, as JSON takes it."""
        return {"stacks": [list(stack) for stack in self._stacks], "at": self._at}

    def __enter__(self) -> Samples:
        if self._wanted:
            self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._done.set()
        if self._wanted:
            self._thread.join()

    def _take(self) -> None:
        while not self._done.wait(EVERY_SECONDS):
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            at = {
                names.get(ident, str(ident)): self._stacks.setdefault(_stack(frame), len(self._stacks))
                for ident, frame in sys._current_frames().items()
                if names.get(ident) != "sampling"
            }
            self._at.append((time.time(), at))


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    found = []
    while frame is not None:
        code = frame.f_code
        found.append(f"{code.co_filename}:{code.co_name}")
        frame = frame.f_back
    return tuple(reversed(found))

"""What a sandbox said last, where nothing else tells why it ended.

Most often that is the last line of a traceback. But a process may have more to say after it: OpenTelemetry's console
exporter prints the spans that are left, other libraries say goodbye. So the exception is looked for first.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence

KEPT = 200
"""Lines; a span that the console exporter prints takes some forty."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = re.compile(r"(?P<margin>[ |+]*)(?:Exception Group )?Traceback \(most recent call last\):\s*")


class LastWords:
    """The last lines of an output."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT)

    def add(self, line: str) -> None:
        """Take one line."""
        self._lines.append(line)

    def tail(self, most: int) -> list[str]:
        """Return the last lines as they came."""
        return list(self._lines)[-most:]

    def telling(self) -> str:
        """Return the exception of the last traceback, else the last line with anything on it; "" if there is none."""
        lines = [_COLOUR.sub("", line).rstrip() for line in self._lines]
        return _exception(lines) or next((line.strip() for line in reversed(lines) if line), "")


def _exception(lines: Sequence[str]) -> str:
    """The first line of the last exception: what follows the frames of its traceback, which are indented."""
    for begin in range(len(lines) - 1, -1, -1):
        found = _TRACEBACK.fullmatch(lines[begin])
        if found is None:
            continue
        margin = len(found["margin"])
        below = (line[margin:] for line in lines[begin + 1 :])
        return next((line for line in below if line and not line[0].isspace()), "")
    return ""

"""What a sandbox said last, where nothing else tells why it ended.

Most often that is the last line of a traceback. But a process may have more to say after it: OpenTelemetry's console
exporter prints the spans that are left, other libraries say goodbye. And an exception that was caught and logged is
followed by words that matter more. No text tells the one from the other, so both are quoted where little came between.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Sequence

KEPT_LINES = 200
"""A span that the console exporter prints takes some forty."""
KEPT_BYTES = 16 * 1024
"""Memory that the lines of one output may take; a line that is longer is cut. A thousand steps may run at once."""
FAREWELL_LINES = 10
"""After so many more lines an exception isn't what the process ended with."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = re.compile(r"(?P<margin>[ |+]*)(?:Exception Group )?Traceback \(most recent call last\):\s*")
_WORDS = re.compile(r"\S*\w")
"""How a line begins that says something by itself: not indented under another one, no bracket alone."""


class LastWords:
    """The last lines of an output."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._bytes = 0

    def add(self, line: str) -> None:
        """Take one line."""
        if sys.getsizeof(line) > KEPT_BYTES:
            line = line[: KEPT_BYTES // 8]  # a character takes up to four bytes
        self._lines.append(line)
        self._bytes += sys.getsizeof(line)
        while len(self._lines) > KEPT_LINES or self._bytes > KEPT_BYTES:
            self._bytes -= sys.getsizeof(self._lines.popleft())

    def tail(self, most: int) -> list[str]:
        """Return the last lines as they came."""
        return list(self._lines)[-most:]

    def telling(self) -> str:
        """Return what tells most; "" if there is nothing.

        The exception of the last traceback, where no words follow it; with the last of them, where a few do. Else the
        last line with anything on it.
        """
        lines = [_COLOUR.sub("", line).rstrip() for line in self._lines]
        exception, after = _exception(lines)
        words = [line for line in after if _WORDS.match(line)]
        if exception and not words:
            return exception
        if exception and len(words) <= FAREWELL_LINES:
            return f"{exception} … {words[-1]}"
        return next((line.strip() for line in reversed(lines) if line), "")


def _exception(lines: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The first line of the last exception, what follows the indented frames of its traceback; and the lines after."""
    for begin in range(len(lines) - 1, -1, -1):
        found = _TRACEBACK.fullmatch(lines[begin])
        if found is None:
            continue
        margin = len(found["margin"])
        for number in range(begin + 1, len(lines)):
            line = lines[number][margin:]
            if line and not line[0].isspace():
                return line, lines[number + 1 :]
        break
    return "", ()

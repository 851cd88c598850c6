"""Output of sandboxes and steps: bytes of a stream become lines, all cut and repaired alike. Standard library only."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

MAX_LINE_LENGTH = 20_000
"""Longest output line that is handed on, in characters; longer ones are cut and say so. Prefect Cloud takes 25,000
characters a log line."""
_SHORTEST_LIMIT = 80  # a cut line still has to say that it was cut

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line of a sandbox's output, without its line end. ``time`` is timezone-aware, as near to the writing
    as the runner can tell."""

    text: str
    stream: Stream
    time: datetime


def utc_now() -> datetime:
    """Return the time, timezone-aware."""
    return datetime.now(timezone.utc)


class LineAssembler:
    """Assembles the lines of one stream; holds at most ``limit`` characters, however long a line is.

    Bad UTF-8 becomes U+FFFD, also where a character is split between two chunks; so does NUL, which Postgres
    refuses in a text. A carriage return not before a line end begins the line again, as on a terminal: a
    progress bar of 10,000 updates is one line. A line of more than ``limit`` characters is cut to ``limit``,
    the note that says so included.

    Feed either bytes or text, not both: text is what an SDK has decoded already.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        limit: int = MAX_LINE_LENGTH,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        if limit < _SHORTEST_LIMIT:
            raise ValueError(f"limit={limit}: at least {_SHORTEST_LIMIT} characters, for the note on a cut")
        self._stream = stream
        self._limit = limit
        self._now = now
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parts: list[str] = []
        self._kept = 0
        self._length = 0
        self._returned = False

    def feed(self, data: bytes | str, time: datetime | None = None) -> list[OutputLine]:
        """Take the next chunk and return the lines that it completes.

        ``time`` is when it was written, timezone-aware, where the runner knows; else it is now.
        """
        text = self._decoder.decode(data) if isinstance(data, bytes) else data
        *ended, rest = text.split("\n")
        lines = []
        for piece in ended:
            self._append(piece)
            lines.append(self._take(time))
        self._append(rest)
        return lines

    def finish(self, time: datetime | None = None) -> list[OutputLine]:
        """The stream has ended: return its last line if that had no line end."""
        self._append(self._decoder.decode(b"", final=True))
        return [self._take(time)] if self._length else []

    def _append(self, piece: str) -> None:
        shown = piece.rstrip("\r")
        if shown:
            # Text after a carriage return takes the place of what was there. Carriage returns at the end of a
            # chunk wait: a line feed may follow in the next one.
            if self._returned or "\r" in shown:
                self._reset()
            shown = shown.rpartition("\r")[2]
            self._length += len(shown)
            if self._kept < self._limit:
                self._parts.append(shown[: self._limit - self._kept])
                self._kept += len(self._parts[-1])
        self._returned = piece.endswith("\r") or (self._returned and not shown)

    def _take(self, time: datetime | None) -> OutputLine:
        text = "".join(self._parts).replace("\0", "\ufffd")
        if self._length > self._limit:
            note = f" … [cut: the line has {self._length} characters]"
            text = text[: self._limit - len(note)] + note
        self._reset()
        return OutputLine(text, self._stream, time or self._now())

    def _reset(self) -> None:
        self._parts.clear()
        self._kept = 0
        self._length = 0
        self._returned = False

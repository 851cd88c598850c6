"""Reads the output that a local sandbox's supervisor keeps on disk, while it grows or later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from types import TracebackType

from bridge.runners.supervisor import FRAME, SEGMENT_BYTES
from bridge.watching.output import LineAssembler, OutputLine

_FRAMES_AT_ONCE = 16


class SpoolReader:
    """Goes through the spool of one sandbox from its start; holds one frame at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment = 0
        self._file: FileIO | None = None
        self._assemblers = {1: LineAssembler("stdout"), 2: LineAssembler("stderr")}

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read(self) -> tuple[bool, list[OutputLine]]:
        """Return whether there was anything new, and the lines that it completes. Raises ``OSError``."""
        lines: list[OutputLine] = []
        for count in range(_FRAMES_AT_ONCE):
            frame = self._frame()
            if frame is None:
                later = self._later_segment()
                if later is None:
                    return count > 0, lines
                # A later segment exists, so this one is complete; look again for what came in between.
                frame = self._frame()
                if frame is None:
                    lines += self._move_to(later)
                    continue
            stream, seconds, data = frame
            lines += self._assemblers[stream].feed(data, datetime.fromtimestamp(seconds, timezone.utc))
        return True, lines

    def finish(self) -> Iterator[OutputLine]:
        """Yield the last lines, those without a line end."""
        for assembler in self._assemblers.values():
            yield from assembler.finish()

    def _frame(self) -> tuple[int, float, bytes] | None:
        if self._file is None:
            try:
                # Unbuffered: what follows half a frame may be another than what a buffer has seen.
                self._file = self._path(self._segment).open("rb", buffering=0)
            except FileNotFoundError:
                if not self._folder.exists():
                    raise
                return None  # nothing was written yet
        start = self._file.tell()
        head = self._file.read(FRAME.size)
        if len(head) == FRAME.size:
            stream, seconds, length = FRAME.unpack(head)
            data = self._file.read(length)
            if len(data) == length:
                return stream, seconds, data
        self._file.seek(start)  # half a frame: the rest is being written
        return None

    def _later_segment(self) -> int | None:
        numbers = (int(path.name.partition("-")[2]) for path in self._folder.glob("output-*"))
        return min((number for number in numbers if number > self._segment), default=None)

    def _move_to(self, segment: int) -> list[OutputLine]:
        skipped = segment - self._segment - 1
        self._close()
        self._segment = segment
        if not skipped:
            return []
        # The two halves of what was cut in the middle must not read as one line.
        unfinished = list(self.finish())
        note = f"[{skipped * SEGMENT_BYTES >> 20} MiB of output are left out here]\n"
        return [*unfinished, *self._assemblers[2].feed(note)]

    def _path(self, segment: int) -> Path:
        return self._folder / f"output-{segment:08d}"

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

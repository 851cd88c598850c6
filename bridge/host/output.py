"""The output of many steps in one log: whole lines, each with the name of its step in front."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import BinaryIO, Literal

from bridge.host.attempt import Streams
from bridge.runners.base import MAX_LINE_LENGTH, OutputLine
from bridge.runners.lines import LineAssembler

_CHUNK = 1 << 16


class _Pipe:
    """One pipe whose lines are written to ``target`` as they come."""

    def __init__(self, prefix: str, stream: Literal["stdout", "stderr"], target: BinaryIO) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._prefix = prefix
        self._target = target
        self._lines = LineAssembler(stream, limit=max(MAX_LINE_LENGTH - len(prefix), 1000))
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.reader, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self.reader, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._write(self._lines.feed(data))
        else:
            self.close()

    def _write(self, lines: list[OutputLine]) -> None:
        if lines:
            text = "".join(f"{self._prefix}{line.text}\n" for line in lines)
            self._target.write(text.encode("utf-8", "replace"))
            self._target.flush()

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if not self.ended.is_set():
            self.ended.set()
            asyncio.get_running_loop().remove_reader(self.reader)
            os.close(self.reader)
            self._write(self._lines.finish())


class StepOutput:
    """The output of one attempt. ``streams`` go to its process."""

    def __init__(self, step: str) -> None:
        prefix = f"[{step}] ".replace("\n", " ")
        self._pipes = (
            _Pipe(prefix, "stdout", sys.stdout.buffer),
            _Pipe(prefix, "stderr", sys.stderr.buffer),
        )
        out, err = self._pipes
        self.streams = Streams(out.writer, err.writer, (out.reader, err.reader))

    def started(self) -> None:
        """The process holds the writing ends, or there will be none: close them here."""
        os.close(self.streams.stdout)
        os.close(self.streams.stderr)

    async def drain(self, seconds: float) -> None:
        """Read what is left; at most ``seconds``, since a daemon of the step may hold the pipes open."""
        ends = [asyncio.ensure_future(pipe.ended.wait()) for pipe in self._pipes]
        await asyncio.wait(ends, timeout=seconds)
        for end, pipe in zip(ends, self._pipes, strict=True):
            end.cancel()
            pipe.close()

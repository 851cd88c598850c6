"""The output of many steps in one log: whole lines, each with the name of its step in front."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import BinaryIO

from bridge.host.pipes import Pipe, streams
from bridge.watching.output import MAX_LINE_LENGTH, LineAssembler, OutputLine, Stream


class StepOutput:
    """The output of one attempt. ``streams`` go to its process."""

    def __init__(self, step: str) -> None:
        prefix = f"[{step}] ".replace("\n", " ")
        self._pipes = (_in_lines(prefix, "stdout", sys.stdout.buffer), _in_lines(prefix, "stderr", sys.stderr.buffer))
        self.streams = streams(*self._pipes)

    def started(self) -> None:
        """The process holds the writing ends, or there will be none: close them here."""
        os.close(self.streams.stdout)
        os.close(self.streams.stderr)

    async def drain(self, seconds: float) -> None:
        """Read what is left; at most ``seconds``, since a daemon of the step may hold the pipes open."""
        await asyncio.gather(*(pipe.drain(seconds) for pipe in self._pipes))


def _in_lines(prefix: str, stream: Stream, target: BinaryIO) -> Pipe:
    """Make a pipe whose lines are written to ``target`` as they come."""
    assembler = LineAssembler(stream, limit=max(MAX_LINE_LENGTH - len(prefix), 1000))

    def write(lines: list[OutputLine]) -> None:
        if lines:
            text = "".join(f"{prefix}{line.text}\n" for line in lines)
            target.write(text.encode("utf-8", "replace"))
            target.flush()

    return Pipe(lambda data: write(assembler.feed(data)), over=lambda: write(assembler.finish()))

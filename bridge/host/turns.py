"""Steps that take turns in one sandbox: the step host's answers to its callers."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host import wire
from bridge.host.attempt import Attempt, StepHost, StepProcess
from bridge.host.ends import encode
from bridge.host.journal import EARLIER_BYTES, Journal
from bridge.host.passed_on import told_end
from bridge.host.pipes import Pipe, streams
from bridge.runners.supervisor import oom_kills

GRACE_SECONDS = 4.0
"""Between SIGTERM and SIGKILL of a step; less than what the process runner gives a sandbox."""
DRAIN_SECONDS = 2.0
"""How long a daemon that a step left behind may hold its output open."""


class _Turn:
    """One attempt, from its start to its end, and what is kept of it."""

    def __init__(self, call: wire.Call, folder: Path, attempt: Attempt) -> None:
        self.call = call
        self.journal = Journal(folder / "journal")
        self._attempt = attempt
        self.process: StepProcess | None = None
        self.cut_off: int | None = None
        """The exit code that its end counts as, whatever its process's own is."""
        self._pipes: list[Pipe] = []

    async def run(self, host: StepHost) -> None:
        """Run it to its end. Raises nothing: whatever happens is its end."""
        kills = oom_kills()
        try:
            self.process = await self._start(host)
            end = await self._to_its_end(self.process, kills)
        except Exception as error:
            end = SandboxEnd(End.NEVER_STARTED, detail=f"the step host couldn't start it: {error}")
        for pipe in self._pipes:
            await pipe.drain(DRAIN_SECONDS)
        shutil.rmtree(self._attempt.work_dir, ignore_errors=True)
        if self.journal.lost:
            end = replace(end, detail=f"{self.journal.lost} bytes of its output are lost: no room")
        self.journal.end(encode(end))

    async def _start(self, host: StepHost) -> StepProcess:
        self._pipes = [Pipe(partial(self.journal.write, kind)) for kind in (wire.STDOUT, wire.STDERR)]
        try:
            return await host.start(self._attempt, streams(*self._pipes))
        finally:
            for pipe in self._pipes:
                os.close(pipe.writer)

    async def _to_its_end(self, process: StepProcess, kills: int) -> SandboxEnd:
        ended = asyncio.ensure_future(process.wait())
        await asyncio.wait({ended}, timeout=self.call.timeout)
        if not ended.done():
            process.signal(signal.SIGTERM)
            await asyncio.wait({ended}, timeout=GRACE_SECONDS)
            process.signal(signal.SIGKILL)
            return SandboxEnd(End.TIMED_OUT, await ended, f"after {self.call.timeout:g} s")
        code = ended.result()
        if self.cut_off is not None:
            return SandboxEnd(End.EXITED, self.cut_off)
        if code == -signal.SIGKILL and oom_kills() > kills:
            return SandboxEnd(End.OUT_OF_MEMORY, code, "the kernel killed it for want of memory")
        return SandboxEnd(End.EXITED, code if code >= 0 else 128 - code, record=told_end(self._attempt.end_file))


class Turns:
    """All attempts of one host. One event loop.

    Args:
        snapshot_id: The snapshot that its steps belong to.
        host: Where a step's process comes from.
        folder: A folder of its own.
        idle_timeout: Seconds without a step and without a caller after which it is over.
    """

    def __init__(self, snapshot_id: str, host: StepHost, folder: str, idle_timeout: float) -> None:
        self._snapshot_id = snapshot_id
        self._host = host
        self._folder = Path(folder)
        self._idle_timeout = idle_timeout
        self._turns: dict[str, _Turn] = {}
        self._running: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._callers = 0
        self._idle: asyncio.TimerHandle | None = None
        self._rest()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one caller. A caller that goes away leaves its step running."""
        self._callers += 1
        self._rest()  # which it no longer does: what was counted before this caller came must not end its step
        try:
            line = await reader.readline()
            if line.endswith(b"\n"):
                await self._obey(*wire.Call.of_line(line), writer)
        except ConnectionError:
            return
        finally:
            self._callers -= 1
            writer.close()
            self._rest()

    async def _obey(self, call: wire.Call, environment: dict[str, str], writer: asyncio.StreamWriter) -> None:
        if call.key == wire.WHAT_RUNS:
            writer.write(_frame(wire.ACCEPTED, self._what_runs().encode()))
            await writer.drain()
            return
        turn = self._turns.get(call.key)
        if turn is None:
            if self._over.is_set() or (self._running is not None and not self._running.done()):
                why = "it is ending" if self._over.is_set() else "another step is running in this sandbox"
                writer.write(_frame(wire.REFUSED, why.encode()))
                await writer.drain()
                return
            turn = self._begin(call, environment)
        over = wire.OVER if turn.journal.ended else b""
        writer.write(_frame(wire.ACCEPTED, over, turn.journal.position))
        async for data in turn.journal.follow(call.position):
            writer.write(data)
            await writer.drain()

    def running_steps(self) -> list[str]:
        """The step that runs now, if one does. Any thread may ask."""
        return [turn.call.step for turn in list(self._turns.values()) if not turn.journal.ended]

    def _what_runs(self) -> str:
        return " ".join(self._turns)

    def _begin(self, call: wire.Call, environment: dict[str, str]) -> _Turn:
        # What earlier steps wrote was read, or its reader will find the oldest of it gone: the room is theirs together.
        kept = 0
        for turn in reversed(self._turns.values()):
            turn.journal.shrink()
            kept += turn.journal.kept
            if kept > EARLIER_BYTES:
                turn.journal.drop()
        folder = self._folder / str(len(self._turns))
        work_dir, passed_on = str(folder / "work"), str(self._folder)
        attempt = Attempt(self._snapshot_id, call.step, work_dir, call.step_run_id, environment, passed_on)
        turn = self._turns[call.key] = _Turn(call, folder, attempt)
        self._running = asyncio.ensure_future(turn.run(self._host))
        self._running.add_done_callback(lambda _: self._rest())
        return turn

    def _rest(self) -> None:
        """Begin to count the seconds in which nobody wants anything, or stop counting where somebody does."""
        if self._idle is not None:
            self._idle.cancel()
        busy = self._callers or (self._running is not None and not self._running.done())
        loop = asyncio.get_running_loop()
        self._idle = None if busy else loop.call_later(self._idle_timeout, self._over.set)

    def stop(self) -> None:
        """End the running step, then this."""
        self._over.set()

    def cut_off(self, code: int) -> None:
        """End the running step, whose end counts as this exit code. Its caller can read that, so this goes on."""
        for turn in self._turns.values():
            if turn.journal.ended:
                continue
            turn.cut_off = code
            if turn.process is not None:
                turn.process.signal(signal.SIGTERM)
                asyncio.get_running_loop().call_later(GRACE_SECONDS, turn.process.signal, signal.SIGKILL)

    async def over(self) -> None:
        """Wait until it is over."""
        await self._over.wait()

    async def close(self) -> None:
        """End the running step and its processes, and forget everything."""
        running = self._running
        if running is not None and not running.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({running}, timeout=GRACE_SECONDS)
            self._signal(signal.SIGKILL)
            await running
        await self._host.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        for turn in self._turns.values():
            if turn.process is not None:
                turn.process.signal(number)


def _frame(kind: int, body: bytes, position: int = 0) -> bytes:
    return wire.HEAD.pack(kind, time.time(), position, len(body)) + body

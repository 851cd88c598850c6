"""One step in a warm sandbox, and that sandbox."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from bridge.errors import RunnerError
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.host import wire
from bridge.host.ends import decode
from bridge.runners.base import CallsHosts, HostCall, Sandbox
from bridge.runners.patience import while_it_may_live
from bridge.warming.kinds import LIFETIME_SECONDS
from bridge.watching.output import LineAssembler, OutputLine

OUTAGE_SECONDS = 600.0
"""How long a host in a running sandbox may be out of reach before its step counts as lost."""
OVERDUE_SECONDS = 60.0
"""How long a host may say nothing after its step's time is over. It takes seconds to end a step."""
_HEALTHY_SECONDS = 10.0
"""A call that its host has taken, and that lasted longer, was in order: the step had nothing to say."""
DRAIN_SECONDS = 5.0
"""How long a host that has ended may still be speaking."""
BATCHES = 64
"""Most pieces of output held in memory."""
_LAST_WORDS = 3
_AGAIN_SECONDS = 30.0

_logger = logging.getLogger(__name__)


class WarmHost:
    """A sandbox that runs the step host. One event loop.

    Args:
        start: Makes it, from now on.
        socket: The name of its host's socket.
        since: When it was made, by ``time.monotonic``; None for now.
    """

    def __init__(self, start: Coroutine[Any, Any, Sandbox], socket: str, since: float | None = None) -> None:
        self.socket = socket
        self.made: asyncio.Task[Sandbox] = asyncio.ensure_future(start)
        self.ended: asyncio.Task[SandboxEnd] = asyncio.ensure_future(self._until_end())
        self.ended.add_done_callback(_retrieve)
        self._since = time.monotonic() if since is None else since
        self.fit = True
        """Whether it may be used again: no step in it has ended in a way after which it may not."""
        self.turns = 0
        """How many steps have entered it, as far as this process knows."""

    @property
    def failed(self) -> bool:
        """Whether it couldn't be made, or has ended."""
        unmade = self.made.done() and (self.made.cancelled() or self.made.exception() is not None)
        return unmade or self.ended.done()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call back when it has ended, or couldn't be made."""
        self.ended.add_done_callback(lambda _: callback())

    def has_time_for(self, timeout: int) -> bool:
        """Whether it lives long enough for a step of that timeout, in seconds."""
        left = LIFETIME_SECONDS - (time.monotonic() - self._since)
        return not self.failed and (timeout >= LIFETIME_SECONDS or left >= timeout)

    async def _until_end(self) -> SandboxEnd:
        sandbox = await asyncio.shield(self.made)
        return await while_it_may_live(sandbox.wait, LIFETIME_SECONDS)

    async def end(self) -> None:
        """End it, also while it is being made. Raises nothing: what can't be ended now ends by itself when idle."""
        self.made.cancel()  # which leaves no sandbox behind, and does nothing where there is one
        await asyncio.wait({self.made})
        if self.made.cancelled() or self.made.exception() is not None:
            return
        try:
            await self.made.result().terminate()
        except RunnerError as error:
            _logger.warning("A warm sandbox could not be ended: %s", error)

    async def gone(self) -> None:
        """Wait for its end."""
        await asyncio.wait({self.ended})


def _retrieve(task: asyncio.Task[SandboxEnd]) -> None:
    # Else asyncio complains about an error that whoever waits for `made` has got already.
    if not task.cancelled():
        task.exception()


class WarmStep:
    """An attempt of a step in a warm sandbox, as a :class:`bridge.runners.base.Sandbox`. Its output has to be read.

    Args:
        calls: The runner.
        host: The sandbox, which is this step's until its end.
        sandbox: The same, as its runner has it.
        call: What to ask.
        outage: How long its host may be out of reach, in seconds.
        overdue: How long it may say nothing after the step's time is over, in seconds.
        goes_on: Whether it was begun before, so that its output may not have been read.
    """

    def __init__(
        self,
        calls: CallsHosts,
        host: WarmHost,
        sandbox: Sandbox,
        call: HostCall,
        outage: float = OUTAGE_SECONDS,
        *,
        overdue: float = OVERDUE_SECONDS,
        goes_on: bool = False,
    ) -> None:
        self._calls = calls
        self._host = host
        self._sandbox = sandbox
        self._call = call
        self._outage = outage
        self._overdue = overdue
        self._goes_on = goes_on
        self._first = host.turns == 0
        host.turns += 1
        self._lines: asyncio.Queue[list[OutputLine] | None] = asyncio.Queue(BATCHES)
        self._waits_for_reader = False
        """Whether it is not the host that keeps others waiting, but whoever reads the output."""
        self._assemblers = {wire.STDOUT: LineAssembler("stdout"), wire.STDERR: LineAssembler("stderr")}
        self._position = 0
        self._answered = asyncio.Event()
        """Set once its host has taken the call that is on."""
        self._taken = self._heard = 0.0
        """When that was, and when its host has last said something in it, by ``time.monotonic``."""
        self._began = math.inf
        """When its host has first answered: the step began then, or before."""
        self._caught_up = asyncio.Event()
        """Set once everything is read that its host had when it was asked, or nothing more can be."""
        self._following = asyncio.ensure_future(self._follow())

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self._sandbox.id

    @property
    def name(self) -> str:
        """The name of the attempt."""
        return self._call.call.key

    @property
    def url(self) -> str | None:
        """The sandbox's page."""
        return self._sandbox.url

    async def wait(self) -> SandboxEnd:
        """Wait for the step's end."""
        return await asyncio.shield(self._following)

    async def poll(self) -> SandboxEnd | None:
        """Return the step's end, or None while it runs."""
        return self._following.result() if self._following.done() else None

    async def output(self) -> AsyncIterator[OutputLine]:
        """Yield the step's output. To be read once."""
        while (lines := await self._lines.get()) is not None:
            for line in lines:
                yield line

    async def terminate(self) -> None:
        """End the step, and its sandbox with it: steps are killed only when the run is over.

        What it wrote while nobody read is read first, for a bounded time: it is gone with the sandbox. Where it turns
        out to have ended already, its sandbox stays: another step may be in it whose output nobody has read either.
        """
        if self._goes_on:
            caught_up = asyncio.ensure_future(self._caught_up.wait())
            await asyncio.wait({caught_up}, timeout=DRAIN_SECONDS)
            caught_up.cancel()
            if self._following.done():
                return
        await self._sandbox.terminate()
        await asyncio.wait({self._following})

    @property
    def leaves_it_fit(self) -> bool:
        """Whether the step has ended and another one may use its sandbox: not after a timeout, a kill or worse."""
        following = self._following
        if self._host.failed or not following.done() or following.cancelled() or following.exception() is not None:
            return False
        end = following.result()
        return end.end is End.EXITED and end.exit_code is not None and 0 <= end.exit_code < 128

    async def _follow(self) -> SandboxEnd:
        try:
            return await self._until_end()
        finally:
            for assembler in self._assemblers.values():
                await self._lines.put(assembler.finish())
            await self._lines.put(None)
            self._caught_up.set()

    async def _until_end(self) -> SandboxEnd:
        trouble = ""
        since = time.monotonic()
        while True:
            before = self._position
            self._answered.clear()
            try:
                end = await self._ask()
                if end is not None:
                    return end
            except RunnerError as error:
                trouble = str(error)
            if self._host.failed:
                return await self._without_sandbox()
            if self._position > before or self._was_held():
                since = time.monotonic()
            if time.monotonic() - since > self._outage:
                await self._end_sandbox()
                return SandboxEnd(End.LOST, detail=f"its step host can't be reached: {trouble}")
            await asyncio.wait({self._host.ended}, timeout=1.0)

    def _was_held(self) -> bool:
        """Whether the host was in reach in the call that broke off; one that breaks off at once each time isn't."""
        return self._answered.is_set() and time.monotonic() - self._taken > min(_HEALTHY_SECONDS, self._outage)

    async def _end_sandbox(self) -> None:
        """End it, and wait for that: the step may still run in it, and another sandbox would run it twice."""
        while not self._host.ended.done():
            await self._host.end()
            await asyncio.wait({self._host.ended}, timeout=_AGAIN_SECONDS)

    async def _ask(self) -> SandboxEnd | None:
        """Read what the host says; the end of the step, or None where the connection broke off."""
        reading = asyncio.ensure_future(self._read())
        try:
            if await self._is_silent(reading):
                return await self._without_answer()
            if not reading.done():
                await asyncio.wait({reading}, timeout=DRAIN_SECONDS)
            return reading.result() if reading.done() else None
        finally:
            reading.cancel()

    async def _is_silent(self, reading: asyncio.Task[SandboxEnd | None]) -> bool:
        """Wait until the host has said everything, or its sandbox has ended; True where it is silent for too long."""
        ends = {reading, self._host.ended}
        answered = asyncio.ensure_future(self._answered.wait())
        try:
            await asyncio.wait({*ends, answered}, timeout=self._outage, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answered.cancel()
        while not any(task.done() for task in ends):
            patience = self._patience() if self._answered.is_set() else 0.0
            if patience is not None and patience <= 0:
                return True
            await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        return False

    def _patience(self) -> float | None:
        """For how many seconds more the host may say nothing; None for as long as its sandbox lives."""
        limit = self._call.call.timeout
        if limit is None:
            return None
        if self._waits_for_reader:
            return self._overdue
        return max(self._began + limit, self._heard) + self._overdue - time.monotonic()

    async def _without_answer(self) -> SandboxEnd | None:
        """The host is stuck, in its loading or over a process that the kernel doesn't end; or the connection is."""
        over = self._began + (self._call.call.timeout or math.inf)
        if self._answered.is_set() and self._taken < over:
            return None  # a connection of its own may bring the end: this one may be dead without a word
        late = time.monotonic() > over
        await self._end_sandbox()
        if not late:
            return SandboxEnd(End.LOST, detail="its step host doesn't answer")
        silence = "its step host didn't tell of its end, so its sandbox was ended"
        return SandboxEnd(End.TIMED_OUT, detail=f"after {self._call.call.timeout:g} s; {silence}")

    async def _read(self) -> SandboxEnd | None:
        frames, written, over = wire.FrameReader(), 0, False
        call = replace(self._call, call=replace(self._call.call, position=self._position))
        async for data in self._calls.call(self._sandbox, call):
            self._heard = time.monotonic()
            for frame in frames.feed(data):
                if frame.kind == wire.END:
                    if missing := self._missing(frame.position):
                        await self._hand_on(missing)
                    return decode(frame.body)
                if frame.kind == wire.REFUSED:
                    return SandboxEnd(End.LOST, detail=f"its step host refused it: {frame.body.decode()}")
                if frame.kind == wire.ACCEPTED:
                    self._taken = self._heard
                    self._began = min(self._began, self._taken)
                    self._answered.set()
                    written, over = frame.position, frame.body == wire.OVER
                else:
                    await self._take(frame)
                if self._position >= written and not over:
                    self._caught_up.set()
        return None

    async def _take(self, frame: wire.Frame) -> None:
        lines = self._missing(frame.position - wire.HEAD.size - len(frame.body))
        written = datetime.fromtimestamp(frame.seconds, timezone.utc)
        lines += self._assemblers[frame.kind].feed(frame.body, written)
        self._position = frame.position
        if lines:
            await self._hand_on(lines)

    async def _hand_on(self, lines: list[OutputLine]) -> None:
        self._waits_for_reader = True
        try:
            await self._lines.put(lines)
        finally:
            self._waits_for_reader = False
        self._heard = time.monotonic()  # it may have said more long ago

    def _missing(self, position: int) -> list[OutputLine]:
        """Say what was left out before a position, if anything was."""
        missing = position - self._position
        if not missing:
            return []
        lines = [line for assembler in self._assemblers.values() for line in assembler.finish()]
        much = f"{missing >> 20} MiB" if missing >> 20 else f"{missing} bytes"
        return lines + LineAssembler("stderr").feed(f"[{much} of output are left out here]\n")

    async def _without_sandbox(self) -> SandboxEnd:
        """The sandbox has ended under the step."""
        end = self._host.ended.result()
        if end.end is End.TIMED_OUT and self._call.call.timeout is None and not self._first:
            # The time that others have spent in it isn't this step's.
            hours = LIFETIME_SECONDS // 3600
            return SandboxEnd(End.LOST, detail=f"its warm sandbox came to the end of its {hours} hours")
        if end.end is not End.EXITED or (end.exit_code is not None and not 0 <= end.exit_code < 128):
            return end
        # Nothing killed it, so it is the host's own failure, and not the step's.
        words = await self._last_words()
        return SandboxEnd(End.LOST, detail=f"its step host ended with exit code {end.exit_code}{words}")

    async def _last_words(self) -> str:
        last: deque[str] = deque(maxlen=_LAST_WORDS)
        try:
            async for line in self._sandbox.output():
                last.append(line.text.strip())
        except RunnerError as error:
            return f" (its output can't be read: {error})"
        return f": {' / '.join(last)}" if last else ""

"""Sandboxes that are async functions: the shipped fake, for tests and rehearsals.

::

    async def behaviour(request: SandboxRequest, stage: Stage) -> SandboxEnd:
        stage.write("training\\n")
        await stage.sleep(1)
        return SandboxEnd(End.EXITED, 0)

    runner = ScriptedRunner(behaviour)

It keeps the same contract as the real runners (:mod:`bridge.runners.contract`), counts what it does, and a
thousand sandboxes at once cost little: each is one task, a timer and a few objects.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import traceback
import uuid
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol

from bridge.errors import RunnerUnavailable, SandboxRefused
from bridge.flow_run.outcome import End, SandboxEnd
from bridge.runners.base import SandboxRequest
from bridge.runners.once import Once
from bridge.watching.output import LineAssembler, OutputLine, Stream, utc_now

OUTPUT_CHARACTERS = 16 << 20
"""Most output kept of one sandbox; of more the oldest is dropped, and a line says so."""

_CHUNKS_AT_ONCE = 256


class Timer(Protocol):
    """Something that is called later."""

    def cancel(self) -> None:
        """Don't call it."""


class Clock(Protocol):
    """Where sandboxes' seconds come from."""

    def time(self) -> float:
        """Seconds since any fixed point."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back after ``delay`` seconds."""


class LoopClock:
    """The running event loop's own time."""

    def time(self) -> float:
        """The loop's seconds."""
        return asyncio.get_running_loop().time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """The loop's timer."""
        return asyncio.get_running_loop().call_later(delay, callback)


@dataclass
class _ManualTimer:
    callback: Callable[[], None] | None

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, _ManualTimer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        """Seconds that were advanced so far."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call back when that much was advanced."""
        timer = _ManualTimer(callback)
        heapq.heappush(self._due, (self._now + delay, next(self._order), timer))
        return timer

    async def advance(self, seconds: float, turns: int = 20) -> None:
        """Let time pass, timer by timer; after each the loop gets ``turns`` turns for what follows."""
        until = self._now + seconds
        await _turns(turns)
        while self._due and self._due[0][0] <= until:
            self._now, _, timer = heapq.heappop(self._due)
            if timer.callback is not None:
                timer.callback()
                await _turns(turns)
        self._now = until


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Stage:
    """What a behaviour may use: its sandbox from the inside."""

    __slots__ = ("_clock", "_sandbox", "request", "terminated")

    def __init__(self, sandbox: ScriptedSandbox, request: SandboxRequest, clock: Clock) -> None:
        self._sandbox = sandbox
        self._clock = clock
        self.request = request
        self.terminated = asyncio.Event()
        """Set when somebody ends the sandbox, or its time is up; the behaviour is cancelled then."""

    @property
    def id(self) -> str:
        """The sandbox's id, as a program would find it in MODAL_SANDBOX_ID."""
        return self._sandbox.id

    def write(self, text: str | bytes, stream: Stream = "stdout") -> None:
        """Write to the output; like a program, with line ends of its own."""
        self._sandbox.written.add(text, stream)

    async def sleep(self, seconds: float) -> None:
        """Sleep for that long on the runner's clock."""
        awake = asyncio.Event()
        timer = self._clock.call_later(seconds, awake.set)
        try:
            await awake.wait()
        finally:
            timer.cancel()

    async def for_ever(self) -> None:
        """Wait for the end that somebody else makes."""
        await self.terminated.wait()


Behaviour = Callable[[SandboxRequest, Stage], Awaitable[SandboxEnd]]
Admission = Callable[[SandboxRequest], Awaitable[None]]


class _Output:
    """What a sandbox wrote, in memory, bounded; readers wait for more on one future."""

    __slots__ = ("chunks", "dropped", "ended", "more", "size")

    def __init__(self) -> None:
        self.chunks: deque[tuple[str | bytes, Stream, datetime]] = deque()
        self.dropped = 0
        self.size = 0
        self.ended = False
        self.more: asyncio.Future[None] | None = None

    def add(self, text: str | bytes, stream: Stream) -> None:
        self.chunks.append((text, stream, utc_now()))
        self.size += len(text)
        while self.size > OUTPUT_CHARACTERS:
            self.size -= len(self.chunks.popleft()[0])
            self.dropped += 1
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self.more is not None and not self.more.done():
            self.more.set_result(None)
        self.more = None

    async def read(self, start: int) -> tuple[int, list[tuple[str | bytes, Stream, datetime]]] | None:
        """Return chunks from number ``start`` on, and how many before them are gone; None after the end."""
        while start >= self.dropped + len(self.chunks):
            if self.ended:
                return None
            if self.more is None:
                self.more = asyncio.get_running_loop().create_future()
            # Shielded: it is everybody's, and a reader that goes must not take it along.
            await asyncio.shield(self.more)
        gone = max(0, self.dropped - start)
        first = start + gone - self.dropped
        return gone, list(itertools.islice(self.chunks, first, first + _CHUNKS_AT_ONCE))


class ScriptedSandbox:
    """A behaviour that runs."""

    __slots__ = (
        "__weakref__",
        "_end",
        "_ended",
        "_forced",
        "_id",
        "_runner",
        "_stage",
        "_task",
        "_timer",
        "request",
        "started",
        "written",
    )

    def __init__(self, runner: ScriptedRunner, request: SandboxRequest) -> None:
        self._id = f"sb-scripted-{uuid.uuid4().hex[:20]}"
        self._runner = runner
        self._end: SandboxEnd | None = None
        self._ended = asyncio.Event()
        self._forced: SandboxEnd | None = None
        self._stage = Stage(self, request, runner.clock)
        self.request = request
        self.written = _Output()
        self.started = runner.clock.time()
        self._timer = runner.clock.call_later(request.spec.timeout, self._time_out)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._conclude)

    def __repr__(self) -> str:
        return f"<ScriptedSandbox {self._id} {self.name}>"

    @property
    def id(self) -> str:
        """Looks like a Modal sandbox id."""
        return self._id

    @property
    def name(self) -> str:
        """The name it was asked for by."""
        return self.request.name

    @property
    def url(self) -> str | None:
        """None: there is no dashboard."""
        return None

    async def wait(self) -> SandboxEnd:
        """Wait for its end. Raises ``RunnerUnavailable`` if that comes, or is asked for, in an outage."""
        self._runner.ask()
        await self._ended.wait()
        self._runner.ask()
        return self._known_end()

    async def poll(self) -> SandboxEnd | None:
        """Return its end, or None while it runs. Raises ``RunnerUnavailable`` in an outage."""
        self._runner.ask()
        return self._end

    async def output(self) -> AsyncIterator[OutputLine]:
        """Yield its output. Raises ``RunnerUnavailable`` in an outage."""
        assemblers = {stream: LineAssembler(stream) for stream in _STREAMS}
        position = 0
        while True:
            self._runner.ask()
            found = await self.written.read(position)
            if found is None:
                break
            gone, chunks = found
            position += gone + len(chunks)
            if gone:
                yield OutputLine(f"[{gone} writes of output are left out here]", "stderr", utc_now())
            for text, stream, time in chunks:
                for line in assemblers[stream].feed(text, time):
                    yield line
        for assembler in assemblers.values():
            for line in assembler.finish():
                yield line

    async def terminate(self) -> None:
        """Cancel the behaviour, and return once it has ended. Raises ``RunnerUnavailable`` in an outage."""
        self._runner.ask()
        self.end_with(SandboxEnd(End.TERMINATED))
        await self._ended.wait()

    def end_with(self, end: SandboxEnd) -> None:
        """End it in this way, from outside: an eviction, say. Does nothing if it has ended.

        The behaviour is cancelled; the end comes when it has finished with that.
        """
        if self._forced is None and not self._task.done():
            self._forced = end
            self._stage.terminated.set()
            self._task.cancel()

    def _time_out(self) -> None:
        self.end_with(SandboxEnd(End.TIMED_OUT, detail=f"after {self.request.spec.timeout} s"))

    async def _run(self) -> SandboxEnd:
        try:
            return await self._runner.behaviour(self.request, self._stage)
        except Exception:
            # Like a program that raises: a traceback on stderr, and exit code 1.
            self._stage.write(traceback.format_exc(), "stderr")
            return SandboxEnd(End.EXITED, 1)

    def _conclude(self, task: asyncio.Task[SandboxEnd]) -> None:
        own = SandboxEnd(End.LOST, detail="its event loop went away") if task.cancelled() else task.result()
        self._end = self._forced or own
        self._timer.cancel()
        self.written.end()
        self._runner.gone(self)
        self._ended.set()

    def _known_end(self) -> SandboxEnd:
        assert self._end is not None
        return self._end


_STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")


class ScriptedRunner:
    """Performs sandboxes.

    Args:
        behaviour: What every sandbox does. Its request says which one it is.
        admit: Awaited before a sandbox is made. It may take its time, or raise what ``start`` may raise.
        clock: Where timeouts and ``Stage.sleep`` get their time.
        default_parallelism: What the runner says of itself.
    """

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        admit: Admission | None = None,
        clock: Clock | None = None,
        default_parallelism: int | None = None,
    ) -> None:
        self.behaviour = behaviour
        self.clock = clock or LoopClock()
        self.requests: list[SandboxRequest] = []
        """What sandboxes were made of, in order."""
        self.most_running = 0
        """Most sandboxes that ran at one time."""
        self._finished_seconds = 0.0
        self._admit = admit
        self._default_parallelism = default_parallelism
        self._down = False
        self._running: dict[tuple[str, str], ScriptedSandbox] = {}
        self._by_id: weakref.WeakValueDictionary[str, ScriptedSandbox] = weakref.WeakValueDictionary()
        self._once: Once[tuple[str, str], tuple[ScriptedSandbox, bool]] = Once(self._undo)

    @property
    def kind(self) -> str:
        """``scripted``."""
        return "scripted"

    @property
    def default_parallelism(self) -> int | None:
        """What it was made with."""
        return self._default_parallelism

    @property
    def created(self) -> int:
        """How many sandboxes were made so far."""
        return len(self.requests)

    @property
    def running_now(self) -> tuple[ScriptedSandbox, ...]:
        """The sandboxes that run, oldest first."""
        return tuple(self._running.values())

    @property
    def sandbox_seconds(self) -> float:
        """For how long sandboxes have run, all together, in seconds of the runner's clock."""
        now = self.clock.time() if self._running else 0.0
        return self._finished_seconds + sum(now - sandbox.started for sandbox in self._running.values())

    @contextmanager
    def outage(self) -> Iterator[None]:
        """A time in which the runner can't be asked: calls raise ``RunnerUnavailable``, sandboxes go on."""
        self._down = True
        try:
            yield
        finally:
            self._down = False

    async def __aenter__(self) -> ScriptedRunner:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._once.settled()

    def host_command(self, *arguments: str) -> tuple[str, ...]:
        """``bridge.host`` and the arguments, for the behaviour to read."""
        return ("bridge.host", *arguments)

    async def start(self, request: SandboxRequest) -> ScriptedSandbox:
        """Start the behaviour, or find the running sandbox of that name."""
        if not request.command:
            raise SandboxRefused(f"Sandbox {request.name!r} has no command")
        sandbox, _ = await self._once.make((request.app, request.name), lambda: self._make(request))
        return sandbox

    async def find(self, app: str, name: str, modal_environment: str | None = None) -> ScriptedSandbox | None:
        """Return the running sandbox of that name, or None."""
        self.ask()
        return self._running.get((app, name))

    async def running(self, tags: Mapping[str, str], modal_environment: str | None = None) -> Sequence[ScriptedSandbox]:
        """Return the running sandboxes that carry all of ``tags``."""
        return [sandbox for sandbox, _ in await self.tagged(tags, modal_environment)]

    async def tagged(
        self, tags: Mapping[str, str], modal_environment: str | None = None
    ) -> Sequence[tuple[ScriptedSandbox, Mapping[str, str]]]:
        """Return the same, each with all of its tags."""
        self.ask()
        return [(s, s.request.tags) for s in self._running.values() if tags.items() <= dict(s.request.tags).items()]

    async def by_id(self, sandbox_id: str) -> ScriptedSandbox | None:
        """Return the sandbox of that id: one that runs, or an ended one that somebody still holds."""
        self.ask()
        return self._by_id.get(sandbox_id)

    def ask(self) -> None:
        """Raises ``RunnerUnavailable`` in an outage."""
        if self._down:
            raise RunnerUnavailable("the scripted runner has an outage")

    def gone(self, sandbox: ScriptedSandbox) -> None:
        """A sandbox tells that it has ended."""
        del self._running[(sandbox.request.app, sandbox.name)]
        self._finished_seconds += self.clock.time() - sandbox.started

    async def _make(self, request: SandboxRequest) -> tuple[ScriptedSandbox, bool]:
        self.ask()
        key = (request.app, request.name)
        if key in self._running:
            return self._running[key], False
        if self._admit is not None:
            await self._admit(request)
        sandbox = self._running[key] = self._made(request)
        self.requests.append(request)
        self.most_running = max(self.most_running, len(self._running))
        return sandbox, True

    def _made(self, request: SandboxRequest) -> ScriptedSandbox:
        sandbox = ScriptedSandbox(self, request)
        self._by_id[sandbox.id] = sandbox
        return sandbox

    async def _undo(self, made: tuple[ScriptedSandbox, bool]) -> None:
        sandbox, is_new = made
        if is_new:
            await sandbox.terminate()

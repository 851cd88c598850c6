"""The ready queue: which step starts when. Standard library only; knows neither Prefect nor sandboxes.

The flow uses it for ``per_step`` mode, the program in the sandbox for ``pipeline`` mode, so both modes have
one meaning of failure modes, limits and retries. ``docs/decisions/ready-queue.md`` says why this isn't left
to Prefect's limits.

A step starts as soon as its upstream steps are done and the gate lets it in; the step with the longest chain
below it goes first. A step that waits costs no task and no thread. Each attempt of a step holds a
:class:`Pass`; a step that waits for its retry gives the pass back and asks for it again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from bridge.awaiting import done_or_set
from bridge.plan import FailureMode


class Fate(str, Enum):
    """What became of a step."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class NotRun:
    """Why a step never ran: the failed upstream steps that it waited for, or the stop of the run."""

    step: str
    upstream: tuple[str, ...]
    reason: str


class Admission(Protocol):
    """Says which steps may run side by side. Called from one event loop only."""

    def fits(self, step: str) -> bool:
        """Whether ``step`` may start beside those that run."""

    def take(self, step: str) -> None:
        """``step`` starts."""

    def give(self, step: str) -> None:
        """``step`` ended or waits."""


class Slots:
    """Admission by number: at most ``limit`` at once, None for any number."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.taken = 0

    def fits(self, step: str) -> bool:
        """Whether a slot is free."""
        return self.limit is None or self.taken < self.limit

    def take(self, step: str) -> None:
        """Take a slot."""
        self.taken += 1

    def give(self, step: str) -> None:
        """Give a slot back."""
        self.taken -= 1


class Gate:
    """Lets steps in by priority, as far as its admission allows. One event loop, no locks.

    Where the first in line doesn't fit, the next that fits goes: graphs are finite, so nobody starves.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._line: list[tuple[int, int, str, Callable[[], None]]] = []
        self._tickets = 0
        self._ending: dict[str, tuple[int, Callable[[], None]]] = {}

    def ask(self, step: str, priority: int, enter: Callable[[], None]) -> None:
        """Queue ``step``; ``enter`` is called, maybe at once, when it holds its place. Higher goes first."""
        self._tickets += 1
        heapq.heappush(self._line, (-priority, self._tickets, step, enter))
        self._let_in()

    def enter(self, step: str) -> bool:
        """Let ``step`` in past the line, if there is room, and say whether it is."""
        fits = self._admission.fits(step)
        if fits:
            self._admission.take(step)
        return fits

    def leave(self, step: str) -> None:
        """Give the place of ``step`` back."""
        self._ending.pop(step, None)
        self._admission.give(step)
        self._let_in()

    def end(self, step: str, below: int, gone: Callable[[], None]) -> None:
        """Give the place of ``step`` to the first in line that has at least priority ``below``, now or later.

        Until then ``step`` keeps it; ``gone`` is called when somebody has it.
        """
        self._ending[step] = (below, gone)
        self._let_in()

    def forget(self, but: Collection[str] = ()) -> None:
        """Send everybody in line away, ``but`` these steps."""
        self._line = [entry for entry in self._line if entry[2] in but]
        heapq.heapify(self._line)

    def _let_in(self) -> None:
        passed_over: list[tuple[int, int, str, Callable[[], None]]] = []
        while self._line:
            entry = heapq.heappop(self._line)
            if self._admission.fits(entry[2]) or self._makes_room(entry[2], -entry[0]):
                self._admission.take(entry[2])
                entry[3]()
                continue
            passed_over.append(entry)
            if isinstance(self._admission, Slots):  # nobody behind would fit either
                break
        for entry in passed_over:
            heapq.heappush(self._line, entry)

    def _makes_room(self, step: str, priority: int) -> bool:
        """Let ``step`` have the place of one that is ending, unless that is kept for somebody who matters more."""
        for ending, (below, gone) in list(self._ending.items()):
            if below <= priority:
                del self._ending[ending]
                self._admission.give(ending)
                gone()
                if self._admission.fits(step):
                    return True
        return False


class Pass:
    """A step's right to run. Held when a step is started; ``give_back`` and ``take_again`` around a wait.

    ``below`` returns the priority of the steps that wait for this one alone; ``held`` is whether it has its place yet.
    """

    def __init__(
        self,
        gate: Gate,
        step: str,
        priority: int,
        kill: asyncio.Event,
        below: Callable[[], int] = lambda: 0,
        *,
        held: bool = True,
    ) -> None:
        self._gate = gate
        self._step = step
        self._priority = priority
        self._below = below
        self._held = held
        self._ending = False
        self.kill = kill
        """Set when the step is to end at once: a failed sibling under FAIL_FAST, or a stopped run."""
        self.last_attempt = False
        """True once no step may start any more: then a failed attempt isn't followed by another."""

    @property
    def held(self) -> bool:
        """Whether the step may run now."""
        return self._held

    @property
    def waits(self) -> bool:
        """Whether the step waits for a place to run again."""
        return not self._held and not self._ending

    def ends(self) -> None:
        """Nothing of the step runs any more, though what came of it isn't known yet. Idempotent.

        Another step may have its place meanwhile, unless one that is about to become ready matters more.
        """
        if self._held:
            self._ending = True
            self._gate.end(self._step, self._below(), self._gone)

    def _gone(self) -> None:
        self._held = False

    def give_back(self) -> None:
        """Let another step run. Idempotent."""
        self._ending = False
        if self._held:
            self._held = False
            self._gate.leave(self._step)

    def take_first(self) -> None:
        """Take a place before all who stand in line, if there is one."""
        self._held = self._held or self._gate.enter(self._step)

    async def take_again(self) -> bool:
        """Wait for a place, and say whether one is held: not so if the step was killed meanwhile."""
        if self._held:
            return True
        if self.kill.is_set():
            return False
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def enter() -> None:
            if entered.cancelled():
                self._gate.leave(self._step)
            else:
                self._held = True
                entered.set_result(None)

        self._gate.ask(self._step, self._priority, enter)
        try:
            await done_or_set(entered, self.kill)
        except asyncio.CancelledError:
            entered.cancel()
            self.give_back()
            raise
        if not self._held:
            entered.cancel()
        return self._held


Execute = Callable[[str, Pass], Awaitable[Fate]]
ReportNotRun = Callable[[NotRun], Awaitable[None]]


class GraphRun:
    """Runs every step of a graph once.

    Args:
        upstream: The upstream steps of each step; every one of them is a key too.
        execute: Runs a step to its end, retries included, and says what became of it. It heeds ``pass.kill``.
            An exception that it raises is a defect: the other steps are killed and it is raised again.
        not_run: Told of each step that never starts, as soon as that is certain.
        admission: Which steps may run side by side.
        failure_mode: What a failed step does to the others.
        finished: Steps that were done before this run.
        begun: Steps that run already, from before this run: they go before all others. They are executed also where
            nothing may start any more: who else would end them?
        closed: Called once, when nothing may start any more.
    """

    def __init__(
        self,
        upstream: Mapping[str, Sequence[str]],
        *,
        execute: Execute,
        not_run: ReportNotRun,
        admission: Admission,
        failure_mode: FailureMode,
        finished: Collection[str] = (),
        begun: Collection[str] = (),
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._upstream = upstream
        self._closed = closed
        self._execute = execute
        self._report_not_run = not_run
        self._failure_mode = failure_mode
        self._gate = Gate(admission)
        self._downstream = _invert(upstream)
        self._priority = _chain_lengths(upstream, self._downstream)
        for step in begun:
            self._priority[step] += len(upstream)
        for below in self._downstream.values():
            self._heaviest_first(below)
        self._waiting_for = {step: len(set(above)) for step, above in upstream.items()}
        self._finished = frozenset(finished)
        self._begun = frozenset(begun)
        self._passes: dict[str, Pass] = {}
        self._tasks: dict[asyncio.Task[Fate], str] = {}
        self._reports: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Queue[asyncio.Task[Fate]] = asyncio.Queue()
        self._context = copy_context()
        self._closed_because: str | None = None
        self._killed = False
        self._blamed: dict[str, tuple[str, ...]] = {}
        """For each step that isn't run: the failed steps above it. Kept, or a long chain takes quadratic time."""
        self.fates: dict[str, Fate] = {}

    def drain(self, reason: str) -> None:
        """Start no other attempt; those that run go on to their end. The first reason counts.

        A step that waits for its retry is given up: ZenML takes no new step run of a failed or stopping run.
        """
        if self._closed_because is not None:
            return
        self._closed_because = reason
        self._closed()
        # Not who stands in line to be taken up: it runs. One that has been let in stands there for a retry.
        self._gate.forget(but=self._begun.difference(self._passes))
        for permit in self._passes.values():
            permit.last_attempt = True
            if permit.waits:
                permit.kill.set()

    def kill(self, reason: str) -> None:
        """Start no other step, and end those that run."""
        self.drain(reason)
        self._killed = True
        for permit in self._passes.values():
            permit.kill.set()

    async def run(self) -> dict[str, Fate]:
        """Run the graph and return the fate of every step.

        Cancelled in the middle, it kills what runs, waits for its end, reports the rest as not run, and then
        raises ``CancelledError``.
        """
        cancelled: asyncio.CancelledError | None = None
        defect: BaseException | None = None
        for step in self._upstream:
            if step in self._finished:
                self.fates[step] = Fate.DONE
        for step in self._heaviest_first(list(self._upstream)):
            if step not in self._finished:
                self._waiting_for[step] -= len(self._finished & set(self._upstream[step]))
                self._admit(step)
        while self._tasks:
            try:
                task = await self._ended.get()
            except asyncio.CancelledError as error:
                cancelled = error
                self.kill("the run was cancelled")
                continue
            step = self._tasks.pop(task)
            permit = self._passes.pop(step)
            error_of_step = _error(task)
            if error_of_step is not None:
                defect = defect or error_of_step
                self._settle(step, Fate.FAILED)
                self.kill(f"step {step} ended in an error of the bridge itself")
            else:
                self._settle(step, task.result())
            permit.give_back()  # only now: the steps below it stand in line already, before those of less weight
        self._close()
        while any(not report.done() for report in self._reports):
            try:
                await asyncio.wait(self._reports)
            except asyncio.CancelledError as error:  # what never ran is reported all the same
                cancelled = error
        unreported = [failure for report in self._reports if (failure := _error(report)) is not None]
        if defect is not None or unreported:
            raise defect or unreported[0]
        if cancelled is not None:
            raise cancelled
        return self.fates

    def _heaviest_first(self, steps: list[str]) -> list[str]:
        # Steps that become ready together enter one after the other, as long as there is room.
        steps.sort(key=self._priority.__getitem__, reverse=True)
        return steps

    def _admit(self, step: str) -> None:
        may_start = self._closed_because is None or step in self._begun
        if self._waiting_for[step] == 0 and may_start and step not in self.fates:
            self._gate.ask(step, self._priority[step], lambda: self._start(step))

    def _start(self, step: str) -> None:
        permit = Pass(self._gate, step, self._priority[step], asyncio.Event(), lambda: self._next_below(step))
        self._passes[step] = permit
        # A step of an earlier process may be let in after the stop.
        permit.last_attempt = self._closed_because is not None
        if self._killed:
            permit.kill.set()

        # A step is let in by whichever step leaves, in the middle of that one's work: its context variables
        # (in the flow: Prefect's task run) must not become the new step's.
        task = self._context.copy().run(asyncio.ensure_future, self._execute(step, permit))
        self._tasks[task] = step
        task.add_done_callback(self._ended.put_nowait)

    def _settle(self, step: str, fate: Fate) -> None:
        self.fates[step] = fate
        if fate is Fate.DONE:
            for below in self._downstream[step]:
                self._waiting_for[below] -= 1
                self._admit(below)
            return
        if fate is Fate.FAILED:
            if self._failure_mode is FailureMode.FAIL_FAST:
                self.kill(f"step {step} failed and the pipeline is FAIL_FAST")
            elif self._failure_mode is FailureMode.STOP_ON_FAILURE:
                self.drain(f"step {step} failed and the pipeline is STOP_ON_FAILURE")
        self._give_up_below(step)

    def _next_below(self, step: str) -> int:
        """The priority of the steps that become ready as soon as ``step`` is done; 0 if there are none."""
        ready = (self._priority[name] for name in self._downstream[step] if self._waiting_for[name] == 1)
        return max(ready, default=0)

    def _give_up_below(self, step: str) -> None:
        below = list(self._downstream[step])
        while below:
            name = below.pop()
            if name in self.fates:
                continue
            self._not_run(name)
            below.extend(self._downstream[name])

    def _close(self) -> None:
        for step in self._upstream:
            if step not in self.fates:
                self._not_run(step)

    def _not_run(self, step: str) -> None:
        self.fates[step] = Fate.NOT_RUN
        culprits = self._blamed[step] = self._culprits(step)
        if culprits:
            reason = f"upstream {', '.join(culprits)} {self.fates[culprits[0]].value}"
        else:
            reason = self._closed_because or "the run ended before it could start"
        report = self._report_not_run(NotRun(step, culprits, reason))
        self._reports.add(self._context.copy().run(asyncio.ensure_future, report))

    def _culprits(self, step: str) -> tuple[str, ...]:
        """The failed or stopped steps that ``step`` waited for, however far up."""
        found: dict[str, None] = {}
        for name in self._upstream[step]:
            if self.fates.get(name) in (Fate.FAILED, Fate.STOPPED):
                found[name] = None
            else:
                found.update(dict.fromkeys(self._blamed.get(name, ())))
        return tuple(found)


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    # A cancelled task raises where it is asked for its exception.
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _invert(upstream: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    downstream: dict[str, list[str]] = {step: [] for step in upstream}
    for step, above in upstream.items():
        for name in dict.fromkeys(above):
            downstream[name].append(step)
    return downstream


def _chain_lengths(upstream: Mapping[str, Sequence[str]], downstream: Mapping[str, list[str]]) -> dict[str, int]:
    """The number of steps on the longest chain that starts at each step, in linear time."""
    missing = {step: len(below) for step, below in downstream.items()}
    lengths = dict.fromkeys(downstream, 1)
    ends = [step for step, count in missing.items() if count == 0]
    while ends:
        step = ends.pop()
        for above in dict.fromkeys(upstream[step]):
            lengths[above] = max(lengths[above], lengths[step] + 1)
            missing[above] -= 1
            if missing[above] == 0:
                ends.append(above)
    if any(missing.values()):
        raise ValueError("The steps of this pipeline form a cycle")
    return lengths

"""Carrying out the step runs of a step operator, on a thread and an event loop of their own.

ZenML calls a step operator from the main thread of a step's process, or from several threads of a dynamic pipeline's:
submit, ask, cancel and clean up are separate calls. The loop lives as long as there is something to carry out, or to
answer, or a warm sandbox is kept (:mod:`bridge.warm_runs`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  its exit hook has to be called after ours, so it comes first
import contextvars
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

from bridge import names, step_runs
from bridge.errors import RunnerUnavailable
from bridge.last_words import LastWords
from bridge.operated import OperatedRun
from bridge.outcome import Outcome, Verdict
from bridge.renewal import StepRenewal
from bridge.runners.base import CallsHosts, OutputLine, Runner, Sandbox
from bridge.step import Attempts
from bridge.truth import Truth, ZenMLThread
from bridge.warm import WarmSteps
from bridge.warm_again import newest_in
from bridge.warm_runs import WarmRuns

T = TypeVar("T")
OnSandbox = Callable[[str, str | None], None]

LAST_LINES = 20

_logger = logging.getLogger(__name__)


class Echo:
    """The output of a step on its way to this process's own: a :class:`bridge.step.Output`.

    Without ``show`` only its last lines are kept.
    """

    def __init__(self, show: bool, on_sandbox: OnSandbox) -> None:
        self._show = show
        self._on_sandbox = on_sandbox
        self.said = LastWords()

    def last_words(self) -> str:
        """Return what a diagnosis may quote, "" if there is nothing."""
        return self.said.telling()

    def comes_from(self, key: str, sandbox_id: str, url: str | None) -> None:
        """Say which sandbox the output is of."""
        self._on_sandbox(sandbox_id, url)

    def write(self, line: OutputLine) -> None:
        """Print one line."""
        self.said.add(line.text)
        if self._show:
            # In no context: ZenML collects what a context prints into the logs of the step, to which the step's own
            # process has sent this line already.
            contextvars.Context().run(_print, line)

    def lost(self, what: str) -> None:
        """The attempt's logger says so."""

    def close(self) -> None:
        """Nothing is held back."""

    async def delivered(self) -> None:
        """It is printed as it comes."""


def _print(line: OutputLine) -> None:
    stream = sys.stdout if line.stream == "stdout" else sys.stderr
    stream.write(f"{line.text}\n")
    stream.flush()


@dataclass(eq=False)
class _Step:
    """One step run that is carried out."""

    run: OperatedRun
    echo: Echo
    kill: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Outcome] = field(init=False)


@dataclass(frozen=True)
class _Open:
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop
    runner: Runner
    close: asyncio.Event
    calls: set[Future[Any]] = field(default_factory=set)
    """What was asked of the loop and hasn't ended on it, whether or not its thread still waits."""


class Operating:
    """What one step operator carries out in this process. Any thread may call it, and is interrupted by signals.

    Args:
        make_runner: Makes the runner, each time that there is something to do again.
    """

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self._make_runner = make_runner
        self._lock = threading.Lock()
        self._open: _Open | None = None
        self._steps: dict[UUID, _Step] = {}
        self._warm_runs = WarmRuns(self._close_unless_needed)
        self._process: int | None = None
        self._tasks: set[asyncio.Future[None]] = set()

    def begin(self, run: OperatedRun, on_sandbox: OnSandbox) -> None:
        """Begin to carry out a step run; return once its sandbox is there, or it has ended. Idempotent.

        Where a sandbox of this step run runs already, it is taken up. ``on_sandbox`` is told the id and page of each
        sandbox, on a thread of its own. Raises ``RunnerError`` where the runner can't be had.
        """
        if run.shared is not None and not self._ends_with_this_process():
            run = replace(run, shared=None)
        self._call(lambda opened: self._begin(run, on_sandbox, opened), contextvars.copy_context())

    def knows(self, step_run_id: UUID) -> bool:
        """Whether the step run was begun here."""
        return step_run_id in self._steps

    def outcome(self, step_run_id: UUID) -> Outcome | None:
        """How a step run of this process ended; None while it is carried out. Raises what broke it."""
        task = self._steps[step_run_id].task
        return task.result() if task.done() else None

    def until_end(self, step_run_id: UUID) -> Outcome:
        """Wait for the end of a step run that was begun here. Raises what broke it."""
        task = self._steps[step_run_id].task

        async def end() -> Outcome:
            return await asyncio.shield(task)

        return self._call(lambda _: end())

    def cancel(self, step_run_id: UUID) -> None:
        """End a step run that was begun here, and tell ZenML that it was stopped. Doesn't wait for that."""
        step = self._steps.get(step_run_id)

        async def kill() -> None:
            if step is not None:
                step.kill.set()

        self._call(lambda _: kill())

    def ask(self, question: Callable[[Runner], Coroutine[Any, Any, T]]) -> T:
        """Ask the runner something, on the loop. Raises what the question raises."""
        return self._call(lambda opened: question(opened.runner))

    def forget(self, step_run_id: UUID) -> None:
        """End a step run that is still carried out, without a word to ZenML, and forget it. Idempotent."""
        if self._open is None:
            return

        async def end() -> None:
            # Looked up here: where :meth:`begin` was interrupted, this comes after it.
            step = self._steps.get(step_run_id)
            if step is not None:
                step.task.cancel()
                await asyncio.wait({step.task})
                del self._steps[step_run_id]

        self._call(lambda _: end())

    def _ends_with_this_process(self) -> bool:
        """See to it that what is kept is ended with this process; False where that has begun."""
        if self._process != os.getpid():
            try:
                # Not atexit: nothing can start a thread any more when that is called.
                threading._register_atexit(self._end_idle)  # type: ignore[attr-defined]
            except RuntimeError:
                return False
            self._process = os.getpid()
        return True

    def _end_idle(self) -> None:
        """End the sandboxes that no step is in, and keep none from now on."""
        if self._open is not None and self._process == os.getpid():  # a fork of it has no loop
            self._call(lambda _: self._warm_runs.end())

    async def _begin(self, run: OperatedRun, on_sandbox: OnSandbox, opened: _Open) -> None:
        if run.step_run_id in self._steps:
            return
        made = asyncio.Event()
        told: set[asyncio.Future[None]] = set()
        thread = ZenMLThread()

        def tell(sandbox_id: str, url: str | None) -> None:
            made.set()
            told.add(asyncio.ensure_future(thread.call(lambda: on_sandbox(sandbox_id, url))))

        step = _Step(run, Echo(run.step.stream_logs, tell))

        async def carry_out() -> Outcome:
            try:
                async with self._warm_runs.warm_for(run, opened.runner, thread) as warm:
                    outcome = await _carry_out(step, opened.runner, thread, warm)
                    self._warm_runs.ended(run, outcome)
                    return outcome
            finally:
                await _told(told)
                thread.close()

        step.task = asyncio.ensure_future(carry_out())
        self._steps[run.step_run_id] = step
        is_made = asyncio.ensure_future(made.wait())
        await asyncio.wait({step.task, is_made}, return_when=asyncio.FIRST_COMPLETED)
        is_made.cancel()

    def _call(self, work: Callable[[_Open], Coroutine[Any, Any, T]], context: contextvars.Context | None = None) -> T:
        result: Future[T] = Future()
        with self._lock:
            opened = self._open = self._open or self._opened()
            opened.calls.add(result)

        async def run() -> None:
            try:
                answer = await work(opened)
            except BaseException as error:
                self._ended(opened, result)
                result.set_exception(error)
            else:
                self._ended(opened, result)
                result.set_result(answer)

        def start() -> None:
            task = asyncio.ensure_future(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        opened.loop.call_soon_threadsafe(start, context=context)
        try:
            return result.result()
        finally:
            if opened.close.is_set():
                opened.thread.join()

    def _opened(self) -> _Open:
        ready: Future[tuple[asyncio.AbstractEventLoop, Runner, asyncio.Event]] = Future()

        async def live() -> None:
            close = asyncio.Event()
            async with self._make_runner() as runner:
                ready.set_result((asyncio.get_running_loop(), runner, close))
                await close.wait()

        def work() -> None:
            try:
                asyncio.run(live())
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        thread = threading.Thread(target=work, name="modal-prefect-step-operator", daemon=True)
        thread.start()
        return _Open(thread, *ready.result())

    def _ended(self, opened: _Open, call: Future[Any]) -> None:
        """On the loop, at the end of a call."""
        with self._lock:
            opened.calls.discard(call)
        self._close_unless_needed()

    def _close_unless_needed(self) -> None:
        """On the loop: close it where there is nothing to carry out, no sandbox is kept, and nobody asks."""
        with self._lock:
            opened = self._open
            if opened is not None and not (self._steps or opened.calls or self._warm_runs.any_kept):
                self._open = None
                opened.close.set()


async def _told(told: set[asyncio.Future[None]]) -> None:
    for future in told:
        try:
            await future
        except Exception as error:
            # The step goes on without it: only its link to Modal is missing in ZenML.
            _logger.warning("ZenML couldn't be told where the step runs: %s: %s", type(error).__name__, error)


async def _carry_out(step: _Step, runner: Runner, thread: ZenMLThread, warm: WarmSteps) -> Outcome:
    run, plan = step.run, step.run.step
    async with StepRenewal(run.run.project_id, run.step_run_id, run.plan.orphan_timeout):
        # This very step run: a dynamic pipeline's next attempt may be there before this one's end is judged.
        truth = Truth(thread, lambda steps: dict.fromkeys(steps, step_runs.record_of(run.step_run_id)))
        attempts = Attempts(run, runner, thread, truth, warm)
        outcome = await attempts.attempt_step(
            plan, 1, run.step_run_id, step.kill, step.echo, _logger, step_run_id=str(run.step_run_id)
        )
    if outcome.verdict is Verdict.FAILED:
        _explain(outcome, step.echo)
    return outcome


def _explain(outcome: Outcome, echo: Echo) -> None:
    """Say in the step's logs what its own process couldn't send there."""
    if outcome.needs_step_run:
        _logger.error("%s", outcome.diagnosis)
        if last := echo.said.tail(LAST_LINES):
            _logger.error("The last lines of its output:\n%s", "\n".join(last))


@dataclass(frozen=True)
class Place:
    """Where a step run is carried out, as a process knows it that didn't begin it.

    ``name`` is that of a sandbox of its own, which is also its attempt's key; ``told`` the id of the sandbox that ZenML
    was told, None where that is none.
    """

    app: str
    name: str
    modal_environment: str | None
    told: str | None = None


async def sandbox_at(runner: Runner, place: Place) -> Sandbox | None:
    """Return the sandbox that runs there: its own, or a warm one in which no step came after it.

    Raises ``RunnerUnavailable``.
    """
    own: Sandbox | None = await runner.find(place.app, place.name, place.modal_environment)
    if own is not None or place.told is None or not isinstance(runner, CallsHosts) or not runner.can_call:
        return own
    shared: Sandbox | None = await runner.by_id(place.told)
    if shared is None or not names.is_host_name(shared.name) or await shared.poll() is not None:
        return None
    try:
        newest = await newest_in(runner, shared)
    except RunnerUnavailable:
        if await shared.poll() is not None:
            return None  # it has just ended
        raise
    return shared if newest == place.name else None


async def end_at(runner: Runner, place: Place) -> None:
    """End the sandbox that runs there, if one does. Raises ``RunnerUnavailable``."""
    sandbox = await sandbox_at(runner, place)
    if sandbox is not None:
        await sandbox.terminate()

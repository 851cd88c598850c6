"""Carrying out the step runs of a step operator.

ZenML calls a step operator from the main thread of a step's process, or from several threads of a dynamic pipeline's:
submit, ask, cancel and clean up are separate calls. They meet on the loop of
:mod:`bridge.step_operators.loop_on_demand`, which lives as long as there is something to carry out, or to answer, or a
warm sandbox is kept (:mod:`bridge.step_operators.warm_runs`).
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
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

from bridge.awaiting import done_or_set
from bridge.cleanup.renewal import StepRenewal
from bridge.flow_run.last_words import LastWords
from bridge.flow_run.outcome import Outcome, Verdict
from bridge.flow_run.step import Attempt, Attempts
from bridge.runners.base import Runner
from bridge.step_operators.loop_on_demand import LoopOnDemand
from bridge.step_operators.operated import OperatedRun
from bridge.step_operators.warm_runs import WarmRuns
from bridge.warming.warm import WarmSteps
from bridge.watching.output import OutputLine
from bridge.zenml_side.step_records import StepRecords
from bridge.zenml_side.zenml_calls import ZenMLCalls

T = TypeVar("T")
OnSandbox = Callable[[str, str | None], None]

LAST_LINES = 20

_logger = logging.getLogger(__name__)


class Echo:
    """The output of a step on its way to this process's own: a :class:`bridge.flow_run.step.Output`.

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


class Operating:
    """What one step operator carries out in this process. Any thread may call it, and is interrupted by signals.

    Args:
        make_runner: Makes the runner, each time that there is something to do again.
    """

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        self._steps: dict[UUID, _Step] = {}
        self._loop = LoopOnDemand(make_runner, lambda: bool(self._steps) or self._warm_runs.any_kept)
        self._warm_runs: WarmRuns = WarmRuns(self._loop.close_unless_needed)
        self._process: int | None = None

    def begin(self, run: OperatedRun, on_sandbox: OnSandbox) -> None:
        """Begin to carry out a step run; return once its sandbox is there, or it has ended. Idempotent.

        Where a sandbox of this step run runs already, it is taken up. ``on_sandbox`` is told the id and page of each
        sandbox, on a thread of its own. Raises ``RunnerError`` where the runner can't be had.
        """
        if run.shared is not None and not self._ends_with_this_process():
            run = replace(run, shared=None)
        self._loop.call(lambda runner: self._begin(run, on_sandbox, runner), contextvars.copy_context())

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

        return self._loop.call(lambda _: end())

    def cancel(self, step_run_id: UUID) -> None:
        """End a step run that was begun here, and tell ZenML that it was stopped. Doesn't wait for that."""
        step = self._steps.get(step_run_id)

        async def kill() -> None:
            if step is not None:
                step.kill.set()

        self._loop.call(lambda _: kill())

    def ask(self, question: Callable[[Runner], Coroutine[Any, Any, T]]) -> T:
        """Ask the runner something, on the loop. Raises what the question raises."""
        return self._loop.call(question)

    def forget(self, step_run_id: UUID) -> None:
        """End a step run that is still carried out, without a word to ZenML, and forget it. Idempotent."""
        if not self._loop.is_open:
            return

        async def end() -> None:
            # Looked up here: where :meth:`begin` was interrupted, this comes after it.
            step = self._steps.get(step_run_id)
            if step is not None:
                step.task.cancel()
                await asyncio.wait({step.task})
                del self._steps[step_run_id]

        self._loop.call(lambda _: end())

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
        if self._loop.is_open and self._process == os.getpid():  # a fork of it has no loop
            self._loop.call(lambda _: self._warm_runs.end())

    async def _begin(self, run: OperatedRun, on_sandbox: OnSandbox, runner: Runner) -> None:
        if run.step_run_id in self._steps:
            return
        made = asyncio.Event()
        told: set[asyncio.Future[None]] = set()
        thread = ZenMLCalls()

        def tell(sandbox_id: str, url: str | None) -> None:
            made.set()
            told.add(asyncio.ensure_future(thread.call(lambda: on_sandbox(sandbox_id, url))))

        step = _Step(run, Echo(run.step.stream_logs, tell))

        async def carry_out() -> Outcome:
            try:
                async with self._warm_runs.warm_for(run, runner, thread) as warm:
                    outcome = await _carry_out(step, runner, thread, warm)
                    self._warm_runs.ended(run, outcome)
                    return outcome
            finally:
                await _told(told)
                thread.close()

        step.task = asyncio.ensure_future(carry_out())
        self._steps[run.step_run_id] = step
        await done_or_set(step.task, made)


async def _told(told: set[asyncio.Future[None]]) -> None:
    for future in told:
        try:
            await future
        except Exception as error:
            # The step goes on without it: only its link to Modal is missing in ZenML.
            _logger.warning("ZenML couldn't be told where the step runs: %s: %s", type(error).__name__, error)


async def _carry_out(step: _Step, runner: Runner, thread: ZenMLCalls, warm: WarmSteps) -> Outcome:
    run, plan = step.run, step.run.step
    async with StepRenewal(run.run.project_id, run.step_run_id, run.plan.orphan_timeout):
        records = StepRecords.of_step_run(thread, run.step_run_id)
        attempt = Attempt(1, run.step_run_id, step.kill, step.echo, _logger, step_run_id=str(run.step_run_id))
        outcome = await Attempts(run, runner, thread, records, warm).attempt_step(plan, attempt)
    if outcome.verdict is Verdict.FAILED:
        _explain(outcome, step.echo)
    return outcome


def _explain(outcome: Outcome, echo: Echo) -> None:
    """Say in the step's logs what its own process couldn't send there."""
    if outcome.needs_step_run:
        _logger.error("%s", outcome.diagnosis)
        if last := echo.said.tail(LAST_LINES):
            _logger.error("The last lines of its output:\n%s", "\n".join(last))

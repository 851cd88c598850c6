"""The warm sandboxes that a process keeps between the steps for which it calls a step operator. One event loop.

Nobody but this knows of them then. They go when they were idle for too long, when no step can come that uses them, and
when the process ends; where it is killed, the hosts in them end by themselves.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from zenml.utils.env_utils import get_runtime_environment

from bridge import names
from bridge.errors import RunIsOver
from bridge.flow_run.outcome import Outcome, Verdict
from bridge.flow_run.run import environment_of
from bridge.plan import FailureMode, Plan
from bridge.runners.base import Runner
from bridge.step_operators.operated import OperatedRun, SharedRun
from bridge.warming.warm import WarmSteps
from bridge.zenml_side.zenml_calls import ZenMLCalls

END_SECONDS = 20.0
"""How long a process that ends waits for the end of its idle sandboxes."""


@dataclass(eq=False)
class _Kept:
    """The sandboxes of one run."""

    warm: WarmSteps
    plan: Plan
    steps: int = 0
    """How many of its steps are being carried out."""
    free: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while none is."""
    keeping: asyncio.Task[None] = field(init=False)


@dataclass
class _Past:
    """What is known of a run whatever is kept of it: its sandboxes may go, and later ones come."""

    finished: dict[str, bool] = field(default_factory=dict)
    """The steps that have ended, and whether those below them may run."""
    begins_no_more: bool = False


class WarmRuns:
    """The warm sandboxes of all runs whose steps one operator runs in this process.

    Args:
        over: Called on the loop when the last sandbox of a run is gone.
    """

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self._kept: dict[str, _Kept] = {}
        self._past: dict[str, _Past] = defaultdict(_Past)
        self._ends = False

    @property
    def any_kept(self) -> bool:
        """Whether there may be sandboxes."""
        return bool(self._kept)

    @asynccontextmanager
    async def warm_for(self, run: OperatedRun, runner: Runner, thread: ZenMLCalls) -> AsyncIterator[WarmSteps]:
        """Within, the step run may be carried out. Raises what ZenML raises where it can't be asked."""
        kept = await self._of(run, runner, thread)
        if kept is None:
            async with WarmSteps(run, runner, None) as alone:
                yield alone
            return
        kept.steps += 1
        kept.free.clear()
        for above in kept.plan.step(run.step.name).upstream:
            self._finish(run.id, above, done=True)  # nobody has said so of one that ZenML had in its cache
        try:
            yield kept.warm
        except asyncio.CancelledError:
            self._begin_no_more(run.id)  # it was interrupted, and with it the whole run
            raise
        finally:
            kept.steps -= 1
            if not kept.steps:
                kept.free.set()

    def ended(self, run: OperatedRun, outcome: Outcome) -> None:
        """A step run has come to its end: what is kept for steps that won't come now goes."""
        plan, step = run.shared, run.step.name
        if plan is None:
            return
        if outcome.verdict is Verdict.FAILED and run.is_tried_again:
            return
        if outcome.verdict is Verdict.SUCCEEDED:
            self._finish(run.id, step, done=True)
        elif outcome.verdict is Verdict.FAILED and plan.failure_mode is FailureMode.CONTINUE_ON_FAILURE:
            for lost in (step, *(other.name for other in plan.steps if step in other.upstream)):
                self._finish(run.id, lost, done=False)
        else:
            self._begin_no_more(run.id)

    async def end(self) -> None:
        """End the sandboxes that no step is in, for a bounded time, and keep none from now on."""
        self._ends = True
        for kept in self._kept.values():
            kept.warm.begin_no_more()
        if idle := [kept.keeping for kept in self._kept.values() if not kept.steps]:
            await asyncio.wait(idle, timeout=END_SECONDS)

    async def _of(self, run: OperatedRun, runner: Runner, thread: ZenMLCalls) -> _Kept | None:
        """The sandboxes of a run; None where the step has one of its own."""
        plan = run.shared
        if plan is None:
            return None
        if run.id not in self._kept:
            shared = await thread.call(lambda: _shared_run(run, plan))
            if shared is not None and run.id not in self._kept:  # another step of the run may have been faster
                return self._new(shared, runner)
        return self._kept.get(run.id)

    def _new(self, run: SharedRun, runner: Runner) -> _Kept:
        kept = self._kept[run.id] = _Kept(WarmSteps(run, runner, None), run.plan)
        # In no context: what is said there later is none of this step's.
        kept.keeping = contextvars.Context().run(asyncio.ensure_future, self._keep(run.id, kept))
        past = self._past[run.id]
        for step, done in past.finished.items():
            kept.warm.finish(step, done=done)
        if self._ends or past.begins_no_more:
            kept.warm.begin_no_more()
        return kept

    def _finish(self, run_id: str, step: str, *, done: bool) -> None:
        self._past[run_id].finished.setdefault(step, done)
        if run_id in self._kept:
            self._kept[run_id].warm.finish(step, done=done)

    def _begin_no_more(self, run_id: str) -> None:
        self._past[run_id].begins_no_more = True
        if run_id in self._kept:
            self._kept[run_id].warm.begin_no_more()

    async def _keep(self, run_id: str, kept: _Kept) -> None:
        async with kept.warm:
            while kept.steps:
                await kept.free.wait()
                await kept.warm.until_empty()
            del self._kept[run_id]
        self._over()


def _shared_run(run: OperatedRun, plan: Plan) -> SharedRun | None:
    """The run as its sandboxes know it, with a token of their own; None where ZenML gives none any more."""
    try:
        secrets = environment_of(run.run, run.snapshot)
    except RunIsOver:
        return None
    if not secrets:
        return None
    environment = {name: value for name, value in run.environment.items() if name != names.ENV_CALLER_TIMEOUT}
    configs = [run.snapshot.step_configurations[step.name].config for step in plan.steps]
    return SharedRun(
        snapshot=run.snapshot,
        run=run.run,
        stack=run.stack,
        plan=plan,
        config=run.config,
        flow_run_id=run.flow_run_id,
        environment=environment,
        secret_environment=secrets,
        operator=run.operator,
        own=frozenset(name for config in configs for name in get_runtime_environment(config, run.stack)),
    )

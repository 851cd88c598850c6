"""Warm sandboxes: steps of one run that ask for the same take turns in one sandbox, one step at a time.

:mod:`bridge.pool` decides who goes where; here sandboxes are started and ended. A step in a warm sandbox is a
:class:`bridge.runners.base.Sandbox` to whoever started it (:mod:`bridge.warm_step`): it has an end, output, and can
be terminated.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace

from bridge import names
from bridge.errors import RunnerError
from bridge.foresight import Foresight
from bridge.host.wire import Call
from bridge.kinds import LIFETIME_SECONDS, kind_of, patience, sharing
from bridge.plan import SandboxSpec, StepPlan
from bridge.pool import Pool
from bridge.run import Run
from bridge.runners.base import CallsHosts, HostCall, Runner, Sandbox, SandboxRequest
from bridge.warm_step import WarmHost, WarmStep

_logger = logging.getLogger(__name__)

MARGIN_SECONDS = 60
"""How much longer than its flow an idle host waits before it ends by itself: then there is no flow any more."""
LEAD_SECONDS = 30.0
"""How long before it is needed, by the last run's durations, a sandbox with a GPU is started: about what it takes."""


class WarmSteps:
    """Starts the steps of one run, in warm sandboxes where they can share one. Use as ``async with``.

    Args:
        run: The run.
        runner: Where sandboxes come from.
        limit: Most sandboxes at once; None for any number.
        recall: Tells how many seconds steps took in an earlier run; without it no sandbox with a GPU starts early.
    """

    def __init__(
        self,
        run: Run,
        runner: Runner,
        limit: int | None,
        recall: Callable[[], Awaitable[Mapping[str, float]]] | None = None,
    ) -> None:
        self._run = run
        self._runner = runner
        self._calls = runner if run.plan.warm and isinstance(runner, CallsHosts) and runner.can_call else None
        steps = run.plan.steps
        kinds = {step.name: kind_of(step.sandbox) for step in steps}
        self._warm = set(sharing(run.plan)) if self._calls is not None else set()
        self._patience = patience(run.plan)
        # A step that ZenML may answer from its cache needs no sandbox.
        sure = [step for step in steps if step.name in self._warm and not step.caching]
        early = [step.name for step in sure if step.sandbox.resources.gpu is None]
        dear = {step.name: run.plan.upstream[step.name] for step in sure if step.sandbox.resources.gpu is not None}
        self._pool: Pool[SandboxSpec, WarmHost] = Pool(kinds, run.plan.upstream, limit, early)
        self._foresight = Foresight(dear, min(LEAD_SECONDS, run.plan.warm_idle_timeout), self._comes_near)
        self._recall = recall if dear else None
        self._recalling: asyncio.Task[None] | None = None
        self._inside: dict[str, WarmHost | None] = {}
        self._coming_back: dict[str, str] = {}
        """The steps that are expected, and the ids of the sandboxes that they come back to."""
        self._left: dict[str, WarmHost] = {}
        """By id, the sandboxes that an earlier process of this flow run left behind."""
        self._turns: dict[str, WarmStep] = {}
        self._timers: dict[WarmHost, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        """Set, and replaced, whenever a step has left its sandbox, or a sandbox is gone."""

    async def __aenter__(self) -> WarmSteps:
        if self._calls is None and self._run.plan.warm and isinstance(self._runner, CallsHosts):
            _logger.info("Each step gets a sandbox of its own: warm ones need Linux.")
        if self._recall is not None:
            self._recalling = asyncio.ensure_future(self._learn(self._recall))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """End every sandbox that nobody is in."""
        self._foresight.close()
        if self._recalling is not None:
            self._recalling.cancel()
            await asyncio.wait({self._recalling})
        inside = set(self._inside.values())
        for host in {*self._pool.idle, *(host for host in self._left.values() if not host.failed)} - inside:
            self._pool.remove(host)
            self._end(host)
        while self._ending:
            await asyncio.wait(self._ending)

    def expect(self, sandboxes: Mapping[str, str]) -> None:
        """These steps come back to the sandboxes of these ids, in which an earlier process of this flow run began them.

        Several may come back to one: one step runs in it, the others have come to their ends there before. It is
        nobody else's until the last of them has left it. No sandbox is started early before they are there: theirs
        count, and maybe are what others need.
        """
        self._coming_back.update(sandboxes)

    async def start(
        self, step: StepPlan, step_run_id: str | None, request: SandboxRequest, left: Sandbox | None = None
    ) -> Sandbox:
        """Start an attempt, ``request`` being the sandbox of its own that it would have; then call :meth:`leave`.

        ``left`` is the sandbox in which an earlier process of this flow run began the very same attempt: it may run
        there still, or have ended. Raises what ``Runner.start`` raises.
        """
        timeout = step.sandbox.timeout
        host = self._pool.enter(step.name, lambda host: left is None and host.has_time_for(timeout))
        self._inside[step.name] = host
        self._coming_back.pop(step.name, None)
        self._foresight.begin(step.name)
        if host is None and left is None:
            await self._make_room()
        calls = self._calls
        if calls is None or step.name not in self._warm:
            return await self._runner.start(request) if left is None else left
        stale = host is not None and bool(step.sandbox.volumes)
        if host is None:
            host = self._inside[step.name] = self._known(left) if left is not None else self._new(step.sandbox)
        self._stop_counting(host)
        self._start_early()
        sandbox = await asyncio.shield(host.made)
        if stale and not await _reloaded(calls, sandbox):
            self._inside[step.name] = None
            self._end(host)
            await self._make_room()
            host = self._inside[step.name] = self._new(step.sandbox)
            sandbox = await asyncio.shield(host.made)
        limit = None if timeout >= LIFETIME_SECONDS else timeout
        call = Call(request.name, step.name, step_run_id, limit)
        asked = HostCall(host.socket, call, request.environment, request.secret_environment)
        turn = self._turns[step.name] = WarmStep(calls, host, sandbox, asked, goes_on=left is not None)
        return turn

    def leave(self, step: str) -> None:
        """An attempt is over, or wasn't started after all. Its sandbox is kept if it is fit for another step."""
        if step not in self._inside:
            return
        host = self._inside.pop(step)
        turn = self._turns.pop(step, None)
        if host is not None and turn is not None and not turn.leaves_it_fit:
            host.fit = False
        if host is not None and self._is_another_s(host):
            host = None
        fit = host is not None and host.fit and not host.failed
        self._pool.leave(step, host if fit else None)
        self._wake()
        if host is not None:
            if fit:
                self._count(host)
            else:
                self._end(host)

    def _is_another_s(self, host: WarmHost) -> bool:
        """Whether another step is in it, or comes back to it: after a crash it may be the one that runs there."""
        expected = (self._left.get(sandbox_id) for sandbox_id in self._coming_back.values())
        return host in self._inside.values() or host in expected

    def finish(self, step: str, *, done: bool) -> None:
        """A step has ended for good, or never runs: what was kept for it alone goes. Idempotent.

        ``done`` says whether those below it may run.
        """
        self._pool.finish(step, done=done)
        self._coming_back.pop(step, None)
        self._foresight.end(step)
        self._end_superfluous()
        self._start_early()

    def begin_no_more(self) -> None:
        """No step begins any more, though some go on: nothing is started for one, or kept."""
        self._pool.close()
        self._end_superfluous()

    async def until_empty(self) -> None:
        """Wait until no step is in a sandbox, none is kept for one, and none is being ended."""
        while self._inside or self._pool.idle or self._ending:
            await self._freed.wait()

    def _end_superfluous(self) -> None:
        for host in self._pool.superfluous():
            self._end(host)

    async def _make_room(self) -> None:
        while not self._pool.has_room:
            host = self._pool.in_the_way()
            if host is None:
                await self._freed.wait()
            else:
                self._end(host)
                await host.gone()

    def _wake(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()

    def _new(self, spec: SandboxSpec) -> WarmHost:
        name = names.host_name()
        socket = names.host_socket(name)
        idle = self._run.plan.warm_idle_timeout + MARGIN_SECONDS
        command = self._runner.host_command(
            "serve",
            *("--snapshot-id", self._run.plan.snapshot_id, "--run-id", self._run.id),
            *("--socket", socket, "--idle-timeout", str(idle), "--each", self._run.step_command),
        )
        spec = replace(kind_of(spec), capacity_timeout=spec.capacity_timeout)
        host = WarmHost(self._runner.start(self._run.host_request(spec, command, name)), socket)
        host.when_ended(lambda: self._lost(host))
        return host

    def _known(self, sandbox: Sandbox) -> WarmHost:
        host = self._left.get(sandbox.id)
        if host is None:
            # How old it is nobody knows: after those that come back, only a step that takes what it gets enters it.
            host = self._left[sandbox.id] = WarmHost(_itself(sandbox), names.host_socket(sandbox.name), since=-math.inf)
            host.when_ended(lambda: self._lost(host))
        self._pool.remove(host)
        return host

    def _lost(self, host: WarmHost) -> None:
        self._stop_counting(host)
        if self._pool.remove(host):
            self._wake()

    async def _learn(self, recall: Callable[[], Awaitable[Mapping[str, float]]]) -> None:
        try:
            self._foresight.learn(await recall())
        except Exception as error:
            # It would have saved a minute at most: no reason to fail a run.
            _logger.warning("No sandbox with a GPU starts early: the last run can't be read (%s).", error)

    def _comes_near(self, step: str) -> None:
        self._start_early({step})

    def _start_early(self, also: Collection[str] = ()) -> None:
        if self._coming_back or not self._run.plan.warm_idle_timeout:
            return
        for kind in self._pool.wanted(also):
            host = self._new(replace(kind, capacity_timeout=self._patience[kind]))
            self._pool.add(kind, host)
            self._count(host)

    def _count(self, host: WarmHost) -> None:
        """An idle sandbox costs: once it is there, it goes when nobody has come for it in time."""
        if not host.made.done():
            host.made.add_done_callback(lambda _: self._count_if_idle(host))
            return
        loop = asyncio.get_running_loop()
        self._timers[host] = loop.call_later(self._run.plan.warm_idle_timeout, self._idle_for_too_long, host)

    def _count_if_idle(self, host: WarmHost) -> None:
        if host in self._pool.idle and host not in self._timers:
            self._count(host)

    def _stop_counting(self, host: WarmHost) -> None:
        if (timer := self._timers.pop(host, None)) is not None:
            timer.cancel()

    def _idle_for_too_long(self, host: WarmHost) -> None:
        if self._pool.idled_out(host):
            self._end(host)

    def _end(self, host: WarmHost) -> None:
        self._stop_counting(host)
        self._pool.begin_end()
        task = asyncio.ensure_future(host.end())
        self._ending.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        self._pool.ended()
        self._wake()


async def _reloaded(calls: CallsHosts, sandbox: Sandbox) -> bool:
    """Whether a sandbox shows what its volumes have now."""
    try:
        await calls.reload_volumes(sandbox)
    except RunnerError as error:
        _logger.warning("A step gets a new sandbox: %s", error)
        return False
    return True


async def _itself(sandbox: Sandbox) -> Sandbox:
    return sandbox

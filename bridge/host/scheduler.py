"""Runs the steps of one pipeline side by side in one sandbox: starts, judges, retries, stops.

Which step starts when is :mod:`bridge.flow_run.ready`'s, what an end means :mod:`bridge.flow_run.outcome`'s; both are
the same in ``per_step`` mode, where the flow asks them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from typing import Any

from bridge.awaiting import done_or_set, set_within
from bridge.flow_run.outcome import (
    SUCCESSFUL,
    Diagnosis,
    End,
    Outcome,
    Reported,
    SandboxEnd,
    StepRecord,
    Verdict,
    answered,
    judge,
)
from bridge.flow_run.ready import Fate, GraphRun, NotRun, Pass
from bridge.host.admission import SharedSandbox
from bridge.host.attempt import Attempt, StepHost, StepProcess
from bridge.host.forking import NoFork
from bridge.host.output import StepOutput
from bridge.host.passed_on import told_end
from bridge.host.spawning import SpawnHost
from bridge.host.store import Store
from bridge.plan import FailureMode, Plan

GRACE_SECONDS = 10.0
"""From SIGTERM to SIGKILL: ZenML's signal handler has two requests to make in it."""
ANNOUNCE_SECONDS = 3.0
"""How long the end of a stopped step may wait for ZenML to hear of it."""
DRAIN_SECONDS = 5.0
STOP_POLL_SECONDS = 15.0
"""How often ZenML is asked whether the run is being stopped; its steps' heartbeats ask as often."""

_STOPPED = "the run was stopped"

_logger = logging.getLogger(__name__)


class Scheduler:
    """One run in one sandbox. One event loop. ``stop_poll`` is :data:`STOP_POLL_SECONDS`."""

    def __init__(
        self,
        plan: Plan,
        host: StepHost,
        store: Store,
        admission: SharedSandbox,
        work_dir: str,
        stop_poll: float = STOP_POLL_SECONDS,
    ) -> None:
        self._stop_poll = stop_poll
        self._plan = plan
        self._work_dir = work_dir
        self._host = host
        self._retired: list[StepHost] = []
        """Hosts that start nothing any more; steps that they started may still run."""
        self._store = store
        self._admission = admission
        self._known: dict[str, StepRecord] = {}
        self._attempts = 0
        self._abandon = False
        self._drained = False
        self._graph: GraphRun | None = None
        self._ended_early: str | None = None

    async def run(self) -> dict[str, Fate]:
        """Run what isn't done yet and return the fate of every step."""
        self._known = await self._store.records(list(self._plan.upstream))
        done = [step for step, record in self._known.items() if record.reported in SUCCESSFUL]
        if done:
            _logger.info("%d of %d steps are done already.", len(done), len(self._known))
        self._graph = GraphRun(
            self._plan.upstream,
            execute=self._execute,
            not_run=self._not_run,
            admission=self._admission,
            failure_mode=self._plan.failure_mode,
            finished=done,
        )
        if self._ended_early is not None:
            self._graph.kill(self._ended_early)
        watch = asyncio.ensure_future(self._watch(self._graph))
        try:
            return await self._graph.run()
        finally:
            watch.cancel()

    async def _watch(self, graph: GraphRun) -> None:
        """Stop the steps of a run that is being stopped.

        Their heartbeats do that only where the store is behind a server: a local one answers them without the
        run's status (zenml/zen_stores/sql_zen_store.py, ``update_step_heartbeat``). Nor does a step that waits
        for its retry have any.
        """
        told = False
        while True:
            try:
                if await self._store.stopping():
                    break
                told = False
            except Exception as error:
                # Whatever the server's trouble is: a stop that comes after it has to be seen.
                if not told:
                    _logger.warning("ZenML can't tell whether the run is being stopped; it is asked again: %s", error)
                told = True
            await asyncio.sleep(self._stop_poll)  # ZenML tells nobody, it has to be asked
        await self._stop(graph)

    async def _stop(self, graph: GraphRun) -> None:
        """End the steps of a run that is being stopped.

        ZenML hears of their end first: a step that answers SIGTERM with an error of its own would be a failed one.
        """
        graph.drain(_STOPPED)
        try:
            await asyncio.wait_for(self._store.stop_running(), ANNOUNCE_SECONDS)
        except asyncio.TimeoutError:
            _logger.warning("ZenML couldn't be told in %g s that the steps are stopped.", ANNOUNCE_SECONDS)
        except Exception as error:
            _logger.warning("ZenML couldn't be told that the steps are stopped: %s", error)
        graph.kill(_STOPPED)

    async def terminate(self) -> None:
        """The sandbox is being ended from outside. May come at any time.

        If somebody stops the ZenML run, the steps are told so and end as stopped. If not, their step runs are
        left as they are, RUNNING: whoever ends the sandbox says what that means. A lost machine's steps then go
        on in another sandbox, which no step run that has an end could.
        """
        try:
            stopping = await asyncio.wait_for(self._store.stopping(), GRACE_SECONDS / 2)
        except asyncio.TimeoutError:
            stopping = False
        except Exception as error:
            # The sandbox ends, whatever ZenML answers.
            _logger.warning("ZenML doesn't say whether the run is being stopped: %s", error)
            stopping = False
        self._abandon = not stopping
        self._ended_early = _STOPPED if stopping else "the sandbox was ended from outside"
        if self._graph is None:
            return
        if stopping:
            await self._stop(self._graph)
        else:
            self._graph.kill(self._ended_early)

    def drain(self, reason: str) -> None:
        """Start no other step. Whoever says so tells ZenML of the steps that wait for a retry."""
        self._ended_early = reason
        self._drained = True
        if self._graph is not None:
            self._graph.drain(reason)

    def kill(self, reason: str) -> None:
        """End the steps that run, of which ZenML knows the end already."""
        self._ended_early = reason
        if self._graph is not None:
            self._graph.kill(reason)

    async def close(self) -> None:
        """Let the step hosts go."""
        for host in (*self._retired, self._host):
            await host.close()

    async def _not_run(self, missing: NotRun) -> None:
        _logger.info("Step %s did not run: %s.", missing.step, missing.reason)

    async def _execute(self, step: str, permit: Pass) -> Fate:
        record = self._known[step]
        if record.reported is Reported.FAILED:
            return Fate.FAILED
        if record.reported is Reported.STOPPED:
            return Fate.STOPPED
        if record.reported is Reported.NOTHING and await self._store.cached(step) is not None:
            _logger.info("Step %s is answered from ZenML's cache.", step)
            return Fate.DONE
        if record.reported is Reported.RETRYING and not await self._may_try_again(step, record, permit):
            # It failed in a sandbox that died before it could be tried again.
            return await self._given_up(step, record, permit)
        while True:
            outcome = await self._attempt(step, record, permit)
            if outcome.verdict is Verdict.SUCCEEDED:
                return Fate.DONE
            if outcome.verdict is Verdict.STOPPED:
                return await self._stopped(step, outcome.record)
            record = await self._report(step, outcome)
            if record.reported is Reported.NOTHING or await self._run_is_stopping():
                # Nothing still: ZenML takes no step runs of this run any more. A sibling failed, or somebody
                # stopped it, after this step's process began and before it could say so.
                return await self._stopped(step, record)
            if not await self._may_try_again(step, record, permit):
                return await self._given_up(step, record, permit)

    async def _given_up(self, step: str, record: StepRecord, permit: Pass) -> Fate:
        """A step has failed and isn't tried again."""
        if permit.kill.is_set():
            return await self._stopped(step, record)
        await self._store.close_retries(step)
        if self._plan.failure_mode is FailureMode.FAIL_FAST:
            # The others are killed next: ZenML hears of it before their processes could call that a failure.
            await self._store.stop_running()
        return Fate.FAILED

    async def _attempt(self, step: str, before: StepRecord, permit: Pass) -> Outcome:
        """Make one attempt: go on with a step run that a dead process left, or begin a new one."""
        continued = before.step_run_id if before.reported is Reported.RUNNING else None
        self._attempts += 1
        gpus = self._admission.gpus_of(step)
        attempt = Attempt(
            snapshot_id=self._plan.snapshot_id,
            step=step,
            work_dir=os.path.join(self._work_dir, f"attempt-{self._attempts}"),
            step_run_id=continued,
            environment={} if gpus is None else {"CUDA_VISIBLE_DEVICES": _visible(gpus)},
            passed_on=self._work_dir,
        )
        os.makedirs(attempt.work_dir, exist_ok=True)
        try:
            code = await self._process(attempt, permit)
        finally:
            shutil.rmtree(attempt.work_dir, ignore_errors=True)
        end = SandboxEnd(End.EXITED, code, record=told_end(attempt.end_file))
        known = answered(end, before)
        record = await (self._store.record(step) if known is None else self._store.in_order(known))
        if continued is None and record.version <= before.version:
            record = StepRecord()  # an earlier attempt's: this one never reached ZenML
        outcome = judge(end, record, stop_requested=permit.kill.is_set())
        if outcome.verdict is not Verdict.SUCCEEDED:
            _logger.warning("Step %s %s: %s", step, outcome.verdict.value, outcome.diagnosis)
        return outcome

    async def _process(self, attempt: Attempt, permit: Pass) -> int:
        """Run the process of an attempt to its end and return its exit code."""
        output = StepOutput(attempt.step)
        try:
            process = await self._start(attempt, output)
        finally:
            output.started()
        ended = asyncio.ensure_future(process.wait())
        await done_or_set(ended, permit.kill)
        if not ended.done():
            await self._end(process, ended)
        await ended
        await output.drain(DRAIN_SECONDS)
        return await process.wait()

    async def _start(self, attempt: Attempt, output: StepOutput) -> StepProcess:
        host = self._host
        try:
            return await host.start(attempt, output.streams)
        except NoFork as error:
            if self._host is host:  # else another step has found that out meanwhile
                _logger.warning("Steps get a process of their own from now on: %s.", error)
                # Closing it would kill the steps that it still runs.
                self._retired.append(host)
                self._host = SpawnHost()
            return await self._host.start(attempt, output.streams)

    async def _end(self, process: StepProcess, ended: asyncio.Future[Any]) -> None:
        if not self._abandon:
            process.signal(signal.SIGTERM)
            await asyncio.wait({ended}, timeout=GRACE_SECONDS)
        # Abandoned steps aren't asked to end: ZenML's handler would answer SIGTERM with a failed step run.
        process.signal(signal.SIGKILL)

    async def _report(self, step: str, outcome: Outcome) -> StepRecord:
        """Tell ZenML of a failure it doesn't know; return the record after that."""
        if not outcome.needs_step_run:
            return outcome.record
        await self._store.failed(step, outcome.record, outcome.diagnosis or Diagnosis("The step failed"))
        return await self._store.record(step)

    async def _stopped(self, step: str, record: StepRecord) -> Fate:
        if not (self._abandon or self._drained):
            await self._store.stopped(record)
            await self._store.stop_retrying(step)
            await self._run_is_stopping()
        return Fate.STOPPED

    async def _run_is_stopping(self) -> bool:
        stopping = await self._store.stopping()
        if stopping and self._graph is not None:
            await self._stop(self._graph)
        return stopping

    async def _may_try_again(self, step: str, record: StepRecord, permit: Pass) -> bool:
        """Wait for the next attempt's time and place; False where there is none."""
        delays = self._plan.step(step).retry.delays
        if record.reported is not Reported.RETRYING or record.version > len(delays) or permit.last_attempt:
            return False
        delay = delays[record.version - 1]
        _logger.info("Step %s is tried again in %g s (%d of %d).", step, delay, record.version, len(delays))
        permit.give_back()
        return not await set_within(permit.kill, delay) and await permit.take_again()


def _visible(gpus: tuple[int, ...]) -> str:
    """The value of CUDA_VISIBLE_DEVICES, in the terms of the host's own where it has one."""
    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",") if outer else []
    return ",".join(names[index] if index < len(names) else str(index) for index in gpus)

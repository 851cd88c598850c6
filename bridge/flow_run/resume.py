"""What an earlier process of a flow run left behind: its attempts, their sandboxes, what is known of them already.

ZenML says what became of the steps, the runner which sandboxes run, Prefect's logs which sandbox an attempt was in
and how much of its output is known. None of it is written down for this purpose alone, so nothing is lost with the
process that died, and a sandbox is never taken for free because its name is: what ended meanwhile is asked for by id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.client.schemas.sorting import TaskRunSort

from bridge import names
from bridge.errors import RunnerError
from bridge.flow_run.outcome import SUCCESSFUL, Reported, StepRecord
from bridge.flow_run.run import Run, sandboxes_of
from bridge.flow_run.said import Said, read_said
from bridge.flow_run.step import Begun
from bridge.plan import Mode, StepPlan
from bridge.prefect_side import prefect_pages
from bridge.runners.base import CallsHosts, Runner, Sandbox
from bridge.warming.warm_again import attempts_in
from bridge.watching.logs import LogShipper
from bridge.zenml_side import step_runs
from bridge.zenml_side.zenml_calls import ZenMLCalls

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """What there was when this process began; nothing, for the first one of a flow run."""

    records: Mapping[str, StepRecord] = field(default_factory=dict)
    """ZenML's record of each step."""
    done: frozenset[str] = frozenset()
    """The steps that have succeeded, as Prefect knows too."""
    begun: Mapping[str, Begun] = field(default_factory=dict)
    """By step; its newest attempt, where it isn't among those that are done."""
    pipeline: Begun | None = None
    """The newest attempt in ``pipeline`` mode."""

    @property
    def successful(self) -> frozenset[str]:
        """The steps that have succeeded."""
        return frozenset(step for step, record in self.records.items() if record.reported in SUCCESSFUL)


async def look_back(
    run: Run, runner: Runner, client: PrefectClient, thread: ZenMLCalls, shipper: LogShipper
) -> Earlier:
    """Find out what an earlier process of this flow run left. Ends the sandboxes that no attempt needs any more.

    Raises ``RunnerUnavailable`` where nobody can be asked about sandboxes, and what the clients of Prefect and ZenML
    raise.
    """
    return await _Look(run, runner, client, thread).back(shipper)


async def end_sandboxes(run: Run, runner: Runner) -> None:
    """End every sandbox of a run. Raises ``RunnerUnavailable``."""
    await asyncio.gather(*(sandbox.terminate() for sandbox in await sandboxes_of(run.id, run.plan, runner)))


async def task_runs_of(client: PrefectClient, flow_run_id: UUID) -> dict[UUID, TaskRun]:
    """Return the task runs of a flow run; an API that is away is asked again. Raises what Prefect's client raises."""
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    read = partial(client.read_task_runs, flow_run_filter=chosen, sort=TaskRunSort.ID_DESC)
    return {task_run.id: task_run async for task_run in prefect_pages.each_patiently(read)}


class _Look:
    def __init__(self, run: Run, runner: Runner, client: PrefectClient, thread: ZenMLCalls) -> None:
        self._run = run
        self._runner = runner
        self._client = client
        self._thread = thread
        self._said = Said()
        self._running: dict[str, Sandbox] = {}
        """By attempt: sandboxes of its own that run, and shared ones that know it."""

    async def back(self, shipper: LogShipper) -> Earlier:
        run, plan = self._run, self._run.plan
        steps = [step.name for step in plan.steps]
        records, task_runs, alive = await asyncio.gather(
            self._thread.call(lambda: step_runs.latest(run.run, steps)),
            task_runs_of(self._client, UUID(run.flow_run_id)),
            sandboxes_of(run.id, run.plan, self._runner),
        )
        hosts = [box for box in alive if names.is_host_name(box.name)]
        self._running = {box.name: box for box in alive if box not in hosts}
        if isinstance(self._runner, CallsHosts):
            self._running |= await attempts_in(self._runner, hosts)
        completed = {id for id, task_run in task_runs.items() if task_run.state and task_run.state.is_completed()}
        if plan.mode is Mode.PIPELINE:
            earlier = Earlier(records, pipeline=await self._pipeline(records))
            needed = [earlier.pipeline] if earlier.pipeline else []
        else:
            earlier = await self._steps(records, completed)
            needed = list(earlier.begun.values())
        shipper.known.update(self._said.lines)
        wanted = {begun.where.id for begun in needed if begun.where is not None}
        ours = {*self._keys(), *(host.name for host in hosts)}
        # A step operator's sandboxes have the tags of the run too; they belong to the step that asked for them.
        await asyncio.gather(*(_end(box) for box in alive if box.name in ours and box.id not in wanted))
        return earlier

    def _keys(self) -> Iterator[str]:
        """The names that attempts of this run may have asked for."""
        run_id, plan = self._run.id, self._run.plan
        if plan.mode is Mode.PIPELINE:
            yield from (names.sandbox_name(run_id, None, number, 1) for number in range(1, plan.most_sandboxes + 1))
            return
        for step in plan.steps:
            for number in range(1, step.retry.retries + 2):
                for sandbox in range(1, step.infrastructure_retries + 2):
                    yield names.sandbox_name(run_id, step.name, number, sandbox)

    # ---- per_step

    async def _steps(self, records: Mapping[str, StepRecord], completed: set[UUID]) -> Earlier:
        flow_run_id, steps = self._run.flow_run_id, self._run.plan.steps
        good = {step for step, record in records.items() if record.reported in SUCCESSFUL}
        ids = {step.name: names.task_run_id(flow_run_id, step.name) for step in steps}
        done = frozenset(step for step in good if ids[step] in completed)
        open_steps = [step for step in steps if step.name not in done and good.issuperset(step.upstream)]
        self._said = await read_said(self._client, (ids[step.name] for step in open_steps))
        found = await asyncio.gather(*(self._begun(step, records.get(step.name, StepRecord())) for step in open_steps))
        begun = {step.name: each for step, each in zip(open_steps, found, strict=True) if each is not None}
        return Earlier(records, done, begun)

    async def _begun(self, step: StepPlan, record: StepRecord) -> Begun | None:
        if record.reported in (Reported.CACHED, Reported.SKIPPED):
            return None
        for number in _attempts(record):
            for sandbox in range(step.infrastructure_retries + 1, 0, -1):
                key = names.sandbox_name(self._run.id, step.name, number, sandbox)
                if key in self._running or key in self._said.sandboxes:
                    return Begun(number, sandbox, record, await self._sandbox(key))
        if record.step_run_id is None:
            return None
        return Begun(record.version, 1, record, await self._by_id(await self._sandbox_id(record.step_run_id)))

    # ---- pipeline

    async def _pipeline(self, records: Mapping[str, StepRecord]) -> Begun | None:
        self._said = await read_said(self._client, [names.task_run_id(self._run.flow_run_id, None)])
        keys = list(self._keys())
        known = [number for number, key in enumerate(keys, 1) if key in self._running or key in self._said.sandboxes]
        if known:
            number = known[-1]
            before = [await self._sandbox(keys[other - 1]) for other in known[:-1]]
            return Begun(number, 1, StepRecord(), await self._sandbox(keys[number - 1]), await _lost(before))
        # The logs don't tell. A step run says where it is, and that sandbox's name which attempt it was.
        there = [record.step_run_id for record in records.values() if record.step_run_id is not None]
        for step_run_id in reversed(there):
            where = await self._by_id(await self._sandbox_id(step_run_id))
            if where is not None and where.name in keys:
                return Begun(keys.index(where.name) + 1, 1, StepRecord(), where)
        return Begun(1, 1, StepRecord(), None) if there else None

    # ---- sandboxes

    async def _sandbox(self, key: str) -> Sandbox | None:
        return self._running.get(key) or await self._by_id(self._said.sandboxes.get(key, ""))

    async def _by_id(self, sandbox_id: str) -> Sandbox | None:
        return await self._runner.by_id(sandbox_id) if sandbox_id else None

    async def _sandbox_id(self, step_run_id: str) -> str:
        return await self._thread.call(lambda: step_runs.sandbox_of(UUID(step_run_id)))


def _attempts(record: StepRecord) -> Iterator[int]:
    """The attempts that may have been the last: each leaves a step run, but the last one maybe not yet."""
    if record.reported is Reported.NOTHING:
        yield 1
        return
    if record.reported is Reported.RETRYING:
        yield record.version + 1
    yield record.version


async def _lost(sandboxes: Sequence[Sandbox | None]) -> int:
    ends = [await sandbox.poll() for sandbox in sandboxes if sandbox is not None]
    forgotten = sum(sandbox is None for sandbox in sandboxes)
    return forgotten + sum(end is not None and end.is_infrastructure for end in ends)


async def _end(sandbox: Sandbox) -> None:
    try:
        await sandbox.terminate()
    except RunnerError as error:
        _logger.warning("Sandbox %s, which no step needs any more, could not be ended: %s", sandbox.id, error)

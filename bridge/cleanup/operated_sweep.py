"""Finding and ending the sandboxes of step operators whose caller is gone, in stacks whose runs are somebody else's.

Such a run is its own orchestrator's matter: here nothing is said of it, only of single step runs. Whether somebody
waits for one is written in its metadata (:mod:`bridge.cleanup.lease`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionMode, ExecutionStatus, StackComponentType
from zenml.models import PipelineRunResponse, StackResponse, StepRunResponse
from zenml.stack import StackComponent

from bridge import names
from bridge.cleanup import lease, orphans, signs_of_life
from bridge.cleanup.listing import Listing
from bridge.cleanup.ownership import Judgement, Owner, judge_caller, judge_idle
from bridge.cleanup.swept import Found, Report, named, noted, read_uuid
from bridge.components import ours, place_of, title
from bridge.errors import BridgeError, RunNotPossible
from bridge.own_loop import on_own_loop
from bridge.runners.base import Sandbox
from bridge.step_operator import ModalPrefectStepOperator
from bridge.step_operators.operated import wishes_of
from bridge.zenml_side import step_runs


def sweep(stack: StackResponse, report: Report, end: bool, modal_environments: Sequence[str], tolerance: float) -> None:
    """Look at the sandboxes of a stack's step operators, and end what nobody waits for where ``end`` says so.

    See :func:`bridge.cleanup.sweep.sweep`.
    """
    report.owned = "step runs with a caller"
    for component in ours(stack, StackComponentType.STEP_OPERATOR):
        with noted(report, f"{title(component)}: "):
            operator = StackComponent.from_model(component)
            if not isinstance(operator, ModalPrefectStepOperator):
                raise RunNotPossible(f"The step operator `{component.name}` is of another flavour.")
            sweeper = _Sweeper(stack, operator, tolerance, modal_environments)
            on_own_loop(partial(sweeper.sweep, report, end))


class _Sweeper:
    def __init__(
        self,
        stack: StackResponse,
        operator: ModalPrefectStepOperator,
        tolerance: float,
        modal_environments: Sequence[str],
    ) -> None:
        self._stack = stack
        self._operator = operator
        self._tolerance = tolerance
        self._environments = modal_environments

    async def sweep(self, report: Report, end: bool) -> None:
        tags = {
            names.TAG_SERVER: str(Client().zen_store.get_store_info().id),
            names.TAG_STACK: names.modal_tag(self._stack.name),
            names.TAG_STEP_OPERATOR: names.modal_tag(self._operator.name),
        }
        place = place_of(self._operator.config)
        async with Listing(tags) as listing:
            boxes = [*await listing.at(place)]
            for name, other in place.in_environments(self._environments).items():
                with named(report, name):
                    boxes += await listing.at(other)
            for sandbox, own in boxes:
                await self._one(sandbox, own, report, end)

    async def _one(self, sandbox: Sandbox, own: Mapping[str, str], report: Report, end: bool) -> None:
        run_id, step_run_id = read_uuid(own.get(names.TAG_RUN_ID)), read_uuid(own.get(names.TAG_STEP_RUN_ID))
        takes_turns = names.is_host_name(sandbox.name)
        if run_id is None or (step_run_id is None and not takes_turns):
            report.problems.append(f"sandbox {sandbox.id} names no step run in its tags: left alone")
            return
        run = await asyncio.to_thread(_run, run_id)
        name = run.name if run is not None else f"{run_id} (deleted in ZenML)"
        step = own.get(names.TAG_STEP, "")
        if takes_turns and run is not None and (inside := await asyncio.to_thread(_inside, run, sandbox.id)):
            step_run_id, step = inside.id, inside.name
        if step_run_id is not None:
            judgement = await asyncio.to_thread(self._judge, step_run_id)
        else:
            judgement = _judge_idle(run)
        report.found.append(Found(run_id, name, run, None, judgement, ((sandbox, step),)))
        if end and judgement.owner is Owner.NOBODY:
            with noted(report, f"step {step} of run {name}: " if step else f"run {name}: "):
                if step_run_id is not None:
                    await asyncio.to_thread(_end, step_run_id, judgement)
                await sandbox.terminate()
                report.ended.add(run_id)

    def _judge(self, step_run_id: UUID) -> Judgement:
        try:
            step_run = Client().zen_store.get_run_step(step_run_id)
        except KeyError:
            return Judgement(Owner.NOBODY, "its step run was deleted in ZenML")
        try:
            orphan_timeout = self._orphan_timeout(step_run)
        except BridgeError as error:
            return Judgement(Owner.UNCLEAR, f"its settings can't be read: {error}")
        sign = lease.age(signs_of_life.last_sign_of_caller(step_run), datetime.now(timezone.utc))
        return judge_caller(sign, orphan_timeout, self._tolerance)

    def _orphan_timeout(self, step_run: StepRunResponse) -> float:
        operator = self._operator
        return wishes_of(step_run.name, step_run.config, operator.config, operator.name).settings.orphan_timeout


def _run(run_id: UUID) -> PipelineRunResponse | None:
    try:
        return Client().zen_store.get_run(run_id)
    except KeyError:
        return None


def _inside(run: PipelineRunResponse, sandbox_id: str) -> StepRunResponse | None:
    """The step run that is in a sandbox in which steps take turns; None if none is."""
    running = [step_run for step_run in step_runs.list_of(run, hydrate=True) if not step_run.status.is_finished]
    there = [step_run for step_run in running if step_run.run_metadata.get(names.METADATA_SANDBOX_ID) == sandbox_id]
    return max(there, key=lambda step_run: step_run.created, default=None)


def _judge_idle(run: PipelineRunResponse | None) -> Judgement:
    if run is None:
        return Judgement(Owner.NOBODY, "its run was deleted in ZenML")
    # ZenML calls a run failed as soon as one of its steps has, whatever its other steps do.
    failed = run.status is ExecutionStatus.FAILED
    goes_on = failed and run.config.execution_mode is ExecutionMode.CONTINUE_ON_FAILURE
    return judge_idle(run.status.value, is_over=run.status.is_finished and not goes_on)


def _end(step_run_id: UUID, judgement: Judgement) -> None:
    try:
        orphans.end_step_run(step_run_id, orphans.caller_gone(judgement.why[:1].upper() + judgement.why[1:]))
    except KeyError:
        return  # it was deleted

"""Ending the sandboxes that this package's step operators have for a run: whoever called them may have been killed."""

from __future__ import annotations

import logging

from zenml.models import PipelineSnapshotResponse
from zenml.stack import Stack

from bridge import names
from bridge.errors import RunnerError
from bridge.flow_run.run import Run, runner_of
from bridge.plan import Mode, Plan
from bridge.step_operator import ModalPrefectStepOperator
from bridge.step_operators.operated import wishes_of

_logger = logging.getLogger(__name__)


async def end_operated(run_id: str, snapshot: PipelineSnapshotResponse, stack: Stack) -> None:
    """End them all. Raises ``RunnerError``, after which some may be left."""
    for operator in stack.step_operators.values():
        if isinstance(operator, ModalPrefectStepOperator):
            await _end_those_of(operator, run_id, snapshot, stack)


def may_be_operated(plan: Plan, stack: Stack) -> bool:
    """Whether any step of a run may be a step operator's."""
    is_dynamic = plan.mode is Mode.DYNAMIC  # of whose steps nobody knows beforehand
    return any(step.step_operator for step in plan.steps) or (is_dynamic and bool(stack.step_operators))


async def end_with(run: Run) -> None:
    """End those of a run that ends early. Where they can't be reached, their own heartbeats end them a little later."""
    if not may_be_operated(run.plan, run.stack):
        return
    try:
        await end_operated(run.id, run.snapshot, run.stack)
    except RunnerError as error:
        _logger.warning("Sandboxes of step operators may be left for some seconds: %s", error)


async def _end_those_of(
    operator: ModalPrefectStepOperator, run_id: str, snapshot: PipelineSnapshotResponse, stack: Stack
) -> None:
    environments = {
        wishes_of(name, step.config, operator.config, operator.name).settings.modal_environment
        for name, step in snapshot.step_configurations.items()
        if step.config.uses_step_operator(operator.name)
    }
    if snapshot.is_dynamic:  # its steps may be others than those that were named beforehand
        environments.add(operator.config.modal_environment)
    if not environments:
        return
    tags = {names.TAG_RUN_ID: run_id, names.TAG_STEP_OPERATOR: names.modal_tag(operator.name)}
    async with runner_of(operator.config, stack) as runner:
        for environment in environments:
            for sandbox in await runner.running(tags, environment):
                await sandbox.terminate()

"""The step runs of a step operator, for a process that didn't begin them: where they are, how they are, their end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.logger import get_logger
from zenml.models import StepRunResponse

from bridge import names
from bridge.cleanup import lease, signs_of_life
from bridge.dynamic_pipelines import asks
from bridge.errors import RunnerUnavailable
from bridge.flow_run.outcome import Diagnosis
from bridge.runners.base import CallsHosts, Runner, Sandbox
from bridge.settings import ModalPrefectStepOperatorConfig, ModalPrefectStepOperatorSettings
from bridge.step_operators.operated import wishes_of
from bridge.warming.warm_again import newest_in
from bridge.zenml_side import step_runs

if TYPE_CHECKING:
    from bridge.step_operators.operating import Operating

logger = get_logger(__name__)


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


class Elsewhere:
    """The step runs of one step operator that other processes began.

    Args:
        config: The step operator's.
        component_name: Its name.
        operating: What asks its runner.
    """

    def __init__(
        self, config: ModalPrefectStepOperatorConfig, component_name: str, operating: Callable[[], Operating]
    ) -> None:
        self._config = config
        self._name = component_name
        self._operating = operating
        self._next_signs: dict[UUID, float] = {}
        """By step run, when to say again that somebody waits for it."""

    def status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """How a step run is, as :meth:`bridge.step_operator.ModalPrefectStepOperator.get_status` says it."""
        place, settings = self._place(step_run)
        if self._operating().ask(lambda runner: sandbox_at(runner, place)) is not None:
            self._wait_too(step_run, settings.orphan_timeout)
            return ExecutionStatus.RUNNING
        # Read after that: a sandbox that ended between the two has reported by now.
        status = Client().get_run_step(step_run.id, hydrate=False).status
        if status in (ExecutionStatus.STOPPING, ExecutionStatus.CANCELLING):
            return ExecutionStatus.STOPPED  # ZenML publishes which of the two ends it is
        if status.is_finished:
            return asks.answer(status)
        if status is not ExecutionStatus.RETRYING:
            diagnosis = Diagnosis("The sandbox was lost", "Whoever started it has died, and it doesn't run any more")
            step_runs.fail_step_run(step_run.id, diagnosis)
        return ExecutionStatus.FAILED

    def cancel(self, step_run: StepRunResponse) -> None:
        """End the sandbox of a step run, which becomes stopped. Raises ``RunnerUnavailable``."""
        # Asked even before it is told: of one that has ended another one may be in its warm sandbox by now.
        place, _ = self._place(step_run)
        step_runs.record_stopped(step_run.id)
        self._operating().ask(lambda runner: end_at(runner, place))

    def _place(self, step_run: StepRunResponse) -> tuple[Place, ModalPrefectStepOperatorSettings]:
        """Where a step run is carried out, and the step's settings."""
        run = Client().get_pipeline_run(step_run.pipeline_run_id)
        settings = wishes_of(step_run.name, step_run.config, self._config, self._name).settings
        pipeline = run.pipeline.name if run.pipeline else ""
        now = Client().get_run_step(step_run.id)
        told = None if now.status.is_finished else now.run_metadata.get(names.METADATA_SANDBOX_ID)
        place = Place(
            names.app_name(pipeline),
            names.operated_name(str(step_run.id)),
            settings.modal_environment,
            told if isinstance(told, str) else None,
        )
        return place, settings

    def _wait_too(self, step_run: StepRunResponse, orphan_timeout: int) -> None:
        """Say that somebody waits for a step run whose caller is gone: its sandbox would end itself for want of one."""
        now = time.monotonic()
        if now < self._next_signs.get(step_run.id, now):
            return
        try:
            signs_of_life.renew_step_run(step_run.project_id, step_run.id)
        except Exception as error:
            # It is said again the next time; the sandbox doesn't count the time in which it can't ask either.
            logger.warning("ZenML couldn't be told that somebody waits: %s: %s", type(error).__name__, error)
            return
        self._next_signs[step_run.id] = now + lease.period(orphan_timeout)

"""Finding the runs and sandboxes of a stack that nobody owns, and ending them on all sides.

Found from three sides, since each may know of what the others have forgotten: ZenML's runs, Prefect's flow runs, and
the sandboxes themselves, by their tags. :mod:`bridge.cleanup.ownership` decides; what it leaves in doubt stays as it
is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from zenml.client import Client
from zenml.enums import ExecutionStatus, StackComponentType
from zenml.models import ComponentResponse, PipelineRunResponse, StackResponse
from zenml.stack import StackComponent
from zenml.utils.pagination_utils import depaginate

from bridge import names
from bridge.cleanup import lease, operated_sweep, orphans, signs_of_life
from bridge.cleanup.listing import Listing, Tagged
from bridge.cleanup.ownership import OVER, Facts, FlowState, Judgement, Owner, judge
from bridge.cleanup.swept import Found, Report, named, noted, read_uuid
from bridge.components import Place, config_of, ours, place_of, stack_named, title
from bridge.errors import BridgeError, RunNotPossible
from bridge.flow_run.left_open import close_flow_run
from bridge.flow_run.outcome import Diagnosis
from bridge.flow_run.watch import cancelled_before
from bridge.orchestrator import ModalPrefectOrchestrator
from bridge.own_loop import on_own_loop
from bridge.prefect_side import prefect_pages
from bridge.prefect_side.prefect_api import prefect_api, prefect_settings
from bridge.zenml_side.run_status import status_of

_LISTED = 100

_STATES = {
    StateType.SCHEDULED: FlowState.WAITING,
    StateType.PENDING: FlowState.WAITING,
    StateType.PAUSED: FlowState.PAUSED,
    StateType.RUNNING: FlowState.RUNNING,
    StateType.CANCELLING: FlowState.CANCELLING,
    StateType.CANCELLED: FlowState.CANCELLED,
    StateType.FAILED: FlowState.FAILED,
    StateType.CRASHED: FlowState.CRASHED,
    StateType.COMPLETED: FlowState.COMPLETED,
}
_OPEN = [state for state, meaning in _STATES.items() if meaning not in OVER]


def stacks(name: str | None = None, everything: bool = False) -> list[StackResponse]:
    """Return the active stack, the one of that name, or all with an orchestrator or step operator of this package.

    Raises ``RunNotPossible`` where there is none, or it has neither.
    """
    if everything:
        return [stack for stack in depaginate(Client().list_stacks, hydrate=True) if ours(stack)]
    stack = stack_named(name)
    if not ours(stack):
        raise RunNotPossible(
            f"The stack `{stack.name}` has neither an orchestrator nor a step operator of flavour `{names.FLAVOR}`. "
            "Name one that has with --stack."
        )
    return [stack]


def orchestrator_of(stack: StackResponse) -> ModalPrefectOrchestrator:
    """Return a stack's orchestrator, alone: the stack's other components may need the user's code."""
    orchestrator = StackComponent.from_model(stack.components[StackComponentType.ORCHESTRATOR][0])
    if not isinstance(orchestrator, ModalPrefectOrchestrator):
        raise RunNotPossible(f"The stack `{stack.name}` has an orchestrator of another flavour.")
    return orchestrator


def sweep(
    stack: StackResponse,
    *,
    end: bool,
    modal_environments: Sequence[str] = (),
    tolerance: float = lease.CLOCKS_SECONDS,
) -> Report:
    """Look at a stack, and end what nobody owns where ``end`` says so.

    Args:
        stack: A stack with this package's orchestrator, or with its step operators under another orchestrator.
        end: Whether to end it; else it is only reported.
        modal_environments: Where to look for sandboxes besides the components' own Modal environments.
        tolerance: By how many seconds the clocks of two machines may differ.

    Raises nothing for what can't be asked or ended: the report says so.
    """
    (report,) = sweep_each([stack], end=end, modal_environments=modal_environments, tolerance=tolerance)
    return report


def sweep_each(
    stacks: Iterable[StackResponse],
    *,
    end: bool,
    modal_environments: Sequence[str] = (),
    tolerance: float = lease.CLOCKS_SECONDS,
) -> list[Report]:
    """Do the same with several stacks, which may have several Modal accounts: one of them has each environment."""
    reports = [_swept(stack, end, modal_environments, tolerance) for stack in stacks]
    there = {name for report in reports for name in report.environments}
    for report in reports:
        report.problems += [why for name, why in report.missing.items() if name not in there]
    return reports


def _swept(stack: StackResponse, end: bool, modal_environments: Sequence[str], tolerance: float) -> Report:
    report = Report(stack.name)
    with noted(report):
        if not ours(stack, StackComponentType.ORCHESTRATOR):
            operated_sweep.sweep(stack, report, end, modal_environments, tolerance)
            return report
        orchestrator = orchestrator_of(stack)
        with prefect_settings(orchestrator.config):
            sweeper = _Sweeper(stack, orchestrator, tolerance, modal_environments)
            on_own_loop(lambda: sweeper.sweep(report, end))
    return report


class _Sweeper:
    def __init__(
        self,
        stack: StackResponse,
        orchestrator: ModalPrefectOrchestrator,
        tolerance: float,
        modal_environments: Sequence[str],
    ) -> None:
        self._stack = stack
        self._orchestrator = orchestrator
        self._tolerance = tolerance
        self._environments = modal_environments

    async def sweep(self, report: Report, end: bool) -> None:
        tags = {
            names.TAG_SERVER: str(Client().zen_store.get_store_info().id),
            names.TAG_STACK: names.modal_tag(self._stack.name),
        }
        async with Listing(tags) as listing:
            boxes = await self._sandboxes(listing, report)
            report.found = await asyncio.to_thread(self._look, boxes)
            if not end:
                return
            for found in report.of(Owner.NOBODY):
                with noted(report, f"run {found.name}: "):
                    await self._end(found)
                    report.ended.add(found.run_id)

    async def _sandboxes(self, listing: Listing, report: Report) -> dict[UUID, list[Tagged]]:
        """The sandboxes of this stack and ZenML server that run, by their run; those of its step operators too."""
        place = place_of(self._orchestrator.config)
        boxes = [*await listing.at(place)]
        for name, other in place.in_environments(self._environments).items():
            with named(report, name):
                boxes += await listing.at(other)
        for component in ours(self._stack, StackComponentType.STEP_OPERATOR):
            boxes += await self._beside(component, listing, report)
        found: dict[UUID, list[Tagged]] = {}
        for sandbox, own in boxes:
            if (run_id := read_uuid(own.get(names.TAG_RUN_ID))) is not None:
                found.setdefault(run_id, []).append((sandbox, own))
            else:
                report.problems.append(f"sandbox {sandbox.id} names no run in its tag {names.TAG_RUN_ID}: left alone")
        return found

    async def _beside(self, operator: ComponentResponse, listing: Listing, report: Report) -> list[Tagged]:
        """The sandboxes of a step operator, which may have another runner, account or environment.

        Where it can't be asked, runs end all the same: its sandboxes are found by their tags the next time.
        """
        boxes: list[Tagged] = []
        others: Mapping[str, Place] = {}
        with noted(report, f"{title(operator)}: "):
            place = place_of(config_of(operator))
            others = place.in_environments(self._environments)
            boxes += await listing.at(place)
        for name, other in others.items():
            with noted(report, f"{title(operator)}: "), named(report, name):
                boxes += await listing.at(other)
        return boxes

    def _look(self, boxes: Mapping[UUID, Sequence[Tagged]]) -> list[Found]:
        with prefect_api() as prefect:
            flow_runs = self._open_flow_runs(prefect)
            ids = dict.fromkeys([*self._open_runs(), *flow_runs, *boxes])
            return [self._found(prefect, run_id, flow_runs.get(run_id), boxes.get(run_id, ())) for run_id in ids]

    def _open_runs(self) -> Iterable[UUID]:
        """ZenML's runs of this stack that haven't ended, in all projects."""
        unfinished = "oneof:" + json.dumps([status.value for status in ExecutionStatus if not status.is_finished])
        for project in depaginate(Client().list_projects):
            runs = depaginate(
                Client().list_pipeline_runs,
                stack_id=self._stack.id,
                project=project.id,
                status=unfinished,
                size=_LISTED,
            )
            yield from (run.id for run in runs if run.child_key is None)  # children go with their parents

    def _open_flow_runs(self, prefect: SyncPrefectClient) -> dict[UUID, FlowRun]:
        """Prefect's flow runs of this stack that haven't ended, by their ZenML run."""
        chosen = FlowRunFilter(
            tags=FlowRunFilterTags(all_=names.stack_tags(self._stack.name)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN)),
        )
        found: dict[UUID, FlowRun] = {}
        for flow_run in prefect_pages.each(partial(prefect.read_flow_runs, flow_run_filter=chosen)):
            if (run_id := read_uuid(names.run_id_of_tags(flow_run.tags))) is not None:
                found[run_id] = flow_run
        return found

    def _found(
        self,
        prefect: SyncPrefectClient,
        run_id: UUID,
        flow_run: FlowRun | None,
        boxes: Sequence[Tagged],
    ) -> Found:
        try:
            run = Client().zen_store.get_run(run_id)
        except KeyError:
            run = None
        told = [run.orchestrator_run_id if run is not None else None]
        told += [own.get(names.TAG_FLOW_RUN_ID) for _, own in boxes]
        flow_run_id = next(filter(None, told), None)
        # Not the one with the run's tag where that is another one: tags are copied.
        if flow_run_id is not None and (flow_run is None or str(flow_run.id) != flow_run_id):
            flow_run = _read_flow_run(prefect, flow_run_id)
        return Found(
            run_id=run_id,
            name=run.name if run is not None else f"{run_id} (deleted in ZenML)",
            run=run,
            flow_run=flow_run,
            judgement=self._judge(prefect, run, flow_run, flow_run_id),
            sandboxes=tuple((sandbox, own.get(names.TAG_STEP, "")) for sandbox, own in boxes),
        )

    def _judge(
        self,
        prefect: SyncPrefectClient,
        run: PipelineRunResponse | None,
        flow_run: FlowRun | None,
        flow_run_id: str | None,
    ) -> Judgement:
        if run is not None and flow_run_id is None:
            return Judgement(Owner.UNCLEAR, "no flow run is written down for it: it may be being submitted")
        state = flow_run.state if flow_run is not None else None
        if run is None and (state is None or not state.is_final()):
            said = f"is {state.name}" if state is not None else "isn't known to Prefect"
            return Judgement(Owner.UNCLEAR, f"it was deleted in ZenML, and its flow run {said}")
        now = datetime.now(timezone.utc)
        try:
            orphan_timeout = self._orphan_timeout(run)
        except BridgeError as error:
            return Judgement(Owner.UNCLEAR, f"its settings can't be read: {error}")
        sign = signs_of_life.last_sign(run) if run is not None else ""
        judgement = judge(
            Facts(
                state=_STATES[state.type] if state is not None else FlowState.UNKNOWN,
                since=(now - state.timestamp).total_seconds() if state is not None else 0.0,
                # Not by its start time: Prefect sets that when it cancels a flow run that never began.
                began=flow_run is not None and flow_run.run_count > 0,
                elsewhere=flow_run is not None and flow_run.deployment_id is not None,
                sign=lease.age(sign, now) if run is not None else None,
                signed=lease.signer(sign)[1] in (0, flow_run.run_count if flow_run is not None else 0),
                orphan_timeout=orphan_timeout,
                tolerance=self._tolerance,
            )
        )
        if judgement.owner is not Owner.NOBODY or judgement.stopped or flow_run is None:
            return judgement
        # Crashed, or Running to this day: whether somebody had cancelled it the history alone tells then.
        if cancelled_before(prefect.read_flow_run_states(flow_run.id)):
            return replace(judgement, why=f"{judgement.why}, after it was cancelled", stopped=True)
        return judgement

    def _orphan_timeout(self, run: PipelineRunResponse | None) -> float:
        if run is None or run.snapshot is None:
            return self._orchestrator.config.orphan_timeout
        return self._orchestrator.run_settings(Client().zen_store.get_snapshot(run.snapshot.id)).orphan_timeout

    async def _end(self, found: Found) -> None:
        """End a run on all sides, unless its flow has come back since."""
        again = await asyncio.to_thread(self._look_again, found)
        if again.owner is not Owner.NOBODY:
            raise RunNotPossible(f"left alone after all: {again.why}")
        was_open = await asyncio.to_thread(_is_open, found)
        ended = await asyncio.to_thread(_end_in_zenml, found)
        try:
            for sandbox, _ in found.sandboxes:
                await sandbox.terminate()
        finally:
            if was_open and found.run is not None:
                # The function of a dynamic pipeline has said of its end what it took it for.
                await asyncio.to_thread(orphans.explain, found.run, _why(found, found.run))
        await asyncio.to_thread(_end_in_prefect, found, ended)

    def _look_again(self, found: Found) -> Judgement:
        with prefect_api() as prefect:
            return self._found(prefect, found.run_id, None, _tagged(found)).judgement


def _tagged(found: Found) -> Sequence[Tagged]:
    flow_run_id = {names.TAG_FLOW_RUN_ID: str(found.flow_run.id)} if found.flow_run is not None else {}
    return [(sandbox, flow_run_id) for sandbox, _ in found.sandboxes]


def _read_flow_run(prefect: SyncPrefectClient, flow_run_id: str) -> FlowRun | None:
    """Return a flow run; None where there is none, or the id is of an orchestrator that the stack had before."""
    known = read_uuid(flow_run_id)
    if known is None:
        return None
    try:
        return prefect.read_flow_run(known)
    except ObjectNotFound:
        return None


def _why(found: Found, run: PipelineRunResponse) -> Diagnosis:
    return orphans.gone(run, found.judgement.why[:1].upper() + found.judgement.why[1:])


def _is_open(found: Found) -> bool:
    status = status_of(found.run) if found.run is not None else None
    return status is not None and not status.is_finished


def _end_in_zenml(found: Found) -> ExecutionStatus | None:
    """End the run in ZenML, and return how it ended; None where it was deleted, before or meanwhile."""
    if found.run is None:
        return None
    orphans.end(found.run, _why(found, found.run), stopped=found.judgement.stopped)
    return status_of(found.run)


def _end_in_prefect(found: Found, ended: ExecutionStatus | None) -> None:
    """End the flow run as ZenML's run has ended, and those of its task runs that no engine works on any more."""
    flow_run = found.flow_run
    if flow_run is None or flow_run.state is None:
        return
    message = f"Nobody worked on this run: {found.judgement.why}."
    run_id = found.run_id if ended is not None else None
    close_flow_run(flow_run, run_id, ended or ExecutionStatus.STOPPED, message)

"""The Prefect automations that see the end of a flow which could not say it: made, kept and taken away again.

Prefect's engine gives a heartbeat for every flow run (``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``, 180 s); on open-source
Prefect nobody listens until there is an automation (docs.prefect.io, "Detect zombie flows"). The first automation here
marks a flow run without heartbeats as Crashed. The second runs the sweep (:mod:`bridge.sweep_flow`) once no flow can
come back to it, if that is deployed: then ZenML's run ends too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from bridge import names
from bridge.cleanup.lease import grace
from bridge.errors import InvalidSettings

FEWEST_HEARTBEATS = 2
_HEARTBEAT = "prefect.flow-run.heartbeat"
_NO_LONGER_RUNNING = (
    "Completed",
    "Failed",
    "Crashed",
    "Cancelled",
    "Paused",
    "Suspended",
    "Scheduled",
    "AwaitingRetry",
)
_OURS = ResourceSpecification({"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{names.TAG_ZENML}"})
_FLOW_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one automation: ``made``, ``changed``, ``kept`` or ``removed``."""

    automation: str
    what: str


def check_patience(after: int) -> None:
    """Raise ``InvalidSettings`` where flows that are alive would be taken for dead."""
    every = get_current_settings().flows.heartbeat_frequency
    variable = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    if every is None:
        raise InvalidSettings("--after", after, f"{variable} is off here, so no flow says that it lives", "Set it")
    if after < FEWEST_HEARTBEATS * every:
        raise InvalidSettings(
            "--after",
            after,
            f"a flow says every {every} s that it lives ({variable}), and one that is a little late would be taken for "
            "dead",
            f"Choose {FEWEST_HEARTBEATS * every} or more, or lower {variable} where flows run",
        )


def set_up(client: SyncPrefectClient, after: int, orphan_timeout: float) -> list[Done]:
    """Make the automations, or bring them up to date; doing it twice changes nothing.

    ``after`` is in seconds, see :func:`check_patience`; ``orphan_timeout`` is how long a run waits for its flow.
    """
    wanted = [_crash(after)]
    if (sweep := _sweep(client, orphan_timeout)) is not None:
        wanted.append(sweep)
    return [_ensure(client, automation) for automation in wanted]


def take_away(client: SyncPrefectClient) -> list[Done]:
    """Remove the automations."""
    removed = []
    for name in (names.AUTOMATION_CRASH, names.AUTOMATION_SWEEP):
        for automation in client.read_automations_by_name(name):
            client.delete_automation(automation.id)
            removed.append(Done(name, "removed"))
    return removed


def _crash(after: int) -> AutomationCore:
    return AutomationCore(
        name=names.AUTOMATION_CRASH,
        enabled=True,  # said, since an update leaves out what isn't
        description="Marks flow runs of ZenML pipelines as Crashed that give no heartbeat any more.",
        trigger=EventTrigger(
            match=_FLOW_RUNS,
            match_related=_OURS,
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{state}" for state in _NO_LONGER_RUNNING)},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=after),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"The process that ran this flow gave no sign of life for {after} s.",
            )
        ],
    )


def _sweep(client: SyncPrefectClient, orphan_timeout: float) -> AutomationCore | None:
    try:
        deployment = client.read_deployment_by_name(f"{names.SWEEP}/{names.SWEEP}")
    except ObjectNotFound:
        return None
    # Not before no flow can come back: until then the sweep would leave the run alone.
    patience = timedelta(seconds=grace(orphan_timeout) + 120)
    return AutomationCore(
        name=names.AUTOMATION_SWEEP,
        enabled=True,
        description="Ends in ZenML what a crashed flow run has left, unless a flow has gone on with it.",
        trigger=EventTrigger(
            match=_FLOW_RUNS,
            match_related=_OURS,
            expect={"prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment.id, schedule_after=patience)],
    )


def _ensure(client: SyncPrefectClient, wanted: AutomationCore) -> Done:
    existing = client.read_automations_by_name(wanted.name)
    if not existing:
        client.create_automation(wanted)
        return Done(wanted.name, "made")
    first, *others = existing
    for other in others:
        client.delete_automation(other.id)
    if first.enabled and _essence(first) == _essence(wanted):
        return Done(wanted.name, "kept")
    client.update_automation(first.id, wanted)
    return Done(wanted.name, "changed")


def _essence(automation: AutomationCore) -> tuple[object, object]:
    trigger = automation.trigger
    assert isinstance(trigger, EventTrigger)
    return (
        (trigger.after, trigger.expect, trigger.posture, trigger.within, trigger.match, trigger.match_related),
        [action.model_dump(mode="json") for action in automation.actions],
    )

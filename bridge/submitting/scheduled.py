"""Which snapshot a schedule runs: ZenML knows, and Prefect may have forgotten.

Prefect's server takes a change of a schedule that doesn't mention its parameters, as the switch in its UI and
``prefect deployment schedule pause`` make it, for one that clears them (seen with 3.7.7, 3.8.8 and 3.9.1).
"""

from __future__ import annotations

from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from zenml.client import Client
from zenml.models import ScheduleResponse

from bridge import names
from bridge.errors import InvalidSettings


def snapshot_of(schedule_id: UUID) -> UUID | None:
    """Return the newest snapshot of a ZenML schedule; None if ZenML has none any more, or has deleted the schedule."""
    schedule = _kept(schedule_id)
    return _newest_snapshot(schedule) if schedule is not None and not schedule.is_archived else None


def _kept(schedule_id: UUID) -> ScheduleResponse | None:
    """What ZenML has of a schedule: one that was deleted is archived, if not by ``--hard``."""
    try:
        return Client().zen_store.get_schedule(schedule_id, hydrate=False)
    except KeyError:
        return None


def _newest_snapshot(schedule: ScheduleResponse) -> UUID | None:
    # In its own project, which needn't be the one that is active on a worker.
    found = Client().list_snapshots(
        project=schedule.project_id, schedule_id=schedule.id, named_only=False, sort_by="desc:created", size=1
    )
    return found.items[0].id if found.items else None


def runs_nothing(pipeline: str, orchestrator_id: UUID) -> ScheduleResponse | None:
    """Return the newest ZenML schedule of a pipeline on an orchestrator if there is no snapshot that it could run."""
    client = Client()
    pipelines = client.list_pipelines(name=f"equals:{pipeline}", size=1).items
    if not pipelines:
        return None
    schedules = client.list_schedules(
        pipeline_id=pipelines[0].id, orchestrator_id=orchestrator_id, sort_by="desc:created", size=1
    ).items
    return schedules[0] if schedules and snapshot_of(schedules[0].id) is None else None


def zenml_schedule(flow_run: FlowRun) -> UUID | None:
    """Return the id of the ZenML schedule that planned a flow run; None if none of ZenML's did."""
    maker = flow_run.created_by
    if not flow_run.auto_scheduled or maker is None or maker.type != "SCHEDULE":
        return None
    try:
        # The slug of the schedule (prefect/server/models/deployments.py, `_generate_scheduled_flow_runs`).
        return UUID(str(maker.display_value))
    except ValueError:
        return None  # somebody's own schedule


def snapshot_for(flow_run: FlowRun, given: UUID) -> UUID:
    """Return the snapshot that a flow run is to run: its schedule's, or the one given as a parameter.

    The latter too where it has its ZenML run already, whatever became of the schedule since.
    Raises ``InvalidSettings`` for a run of a schedule that ZenML doesn't know any more, or has deleted.
    """
    schedule_id = zenml_schedule(flow_run)
    if schedule_id is None or names.run_id_of_tags(flow_run.tags) is not None:
        return given
    schedule = _kept(schedule_id)
    if schedule is not None and schedule.is_archived:
        raise InvalidSettings(
            "schedule",
            schedule.name,
            f"it was deleted in ZenML, and Prefect goes on planning runs: it has the slug {schedule_id}",
            "Delete it in this Prefect too, in the deployment of this flow run",
        )
    if schedule is None or (found := _newest_snapshot(schedule)) is None:
        raise InvalidSettings(
            "schedule",
            schedule_id,
            "ZenML has no snapshot of the schedule that planned this run",
            "Delete the schedule in Prefect, and run the pipeline with a schedule again",
        )
    return found

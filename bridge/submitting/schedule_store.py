"""The schedules of a deployment in Prefect: each has the id of its ZenML schedule as its slug."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from pydantic import JsonValue
from zenml.client import Client
from zenml.models import PipelineSnapshotResponse, ScheduleResponse, ScheduleUpdate

from bridge import names
from bridge.errors import InvalidSettings
from bridge.prefect_side.prefect_api import refuse_temporary_server, where_it_is
from bridge.submitting.deployments import configure_jobs, find_deployment
from bridge.submitting.scheduled import snapshot_of, zenml_schedule
from bridge.submitting.schedules import prefect_schedule

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Changed:
    cron_expression: str | None
    start_time: datetime | None
    end_time: datetime | None
    interval_second: timedelta | None
    run_once_start_time: datetime | None
    catchup: bool


def refuse_no_server(schedule: ScheduleResponse) -> None:
    """Raise ``PrefectUnavailable`` where no Prefect server is configured, on which the schedule would be."""
    if _made_in(schedule) is not None:
        refuse_temporary_server(f"The schedule `{schedule.name}`")


def create_schedule(
    client: SyncPrefectClient,
    deployment_id: UUID,
    snapshot: PipelineSnapshotResponse,
    *,
    work_queue: str,
    job_variables: Mapping[str, JsonValue],
) -> None:
    """Schedule runs of a snapshot that has a ZenML schedule. Either the Prefect schedule is there afterwards, or an
    error is raised and it isn't.

    Raises ``InvalidSettings`` for what Prefect can't schedule.
    """
    schedule = snapshot.schedule
    if schedule is None:
        raise ValueError(f"snapshot {snapshot.id} has no schedule")
    translated = prefect_schedule(schedule, datetime.now(timezone.utc))
    # First, so that the schedule is the last thing that can fail; Prefect's scheduler looks at it soon all the same.
    parameters = {names.PARAMETER_SNAPSHOT_ID: str(snapshot.id)}
    configure_jobs(client, deployment_id, work_queue, job_variables, parameters)
    wanted = DeploymentScheduleCreate(
        schedule=translated,
        active=schedule.active,
        parameters=parameters,
        slug=str(schedule.id),
    )
    try:
        client.create_deployment_schedules(deployment_id, [wanted])
    except httpx.HTTPError:
        # Prefect may have made it, and only its answer was lost: then asking again is answered by a conflict.
        if _of_deployment(client, deployment_id, schedule.id) is None:
            raise


def update_schedule(
    client: SyncPrefectClient, component: str, schedule: ScheduleResponse, update: ScheduleUpdate
) -> None:
    """Change cron expression and activity of a schedule, as far as ``update`` has them.

    Raises ``InvalidSettings`` if Prefect has no such schedule or can't do what is asked for.
    """
    found = _find(client, component, schedule)
    if found is None or found.deployment_id is None:
        raise InvalidSettings(
            "schedule",
            schedule.name,
            "Prefect has no such schedule any more: it, or its deployment, was deleted there, or "
            f"{where_it_is()} isn't the one that has it",
            "Look at `prefect config view`, and set PREFECT_API_URL, or `prefect_api_url` on the orchestrator, to the "
            "one where it was made. If it was deleted there, delete it here too, with `zenml pipeline schedule delete "
            f"{schedule.id}`, and run the pipeline with its schedule again",
        )
    changed = None
    if update.cron_expression is not None:
        wanted = _Changed(
            cron_expression=update.cron_expression,
            start_time=schedule.start_time,
            end_time=schedule.end_time,
            interval_second=None,
            run_once_start_time=None,
            catchup=schedule.catchup,
        )
        changed = prefect_schedule(wanted, datetime.now(timezone.utc))
    configure_jobs(client, found.deployment_id, None, {})
    snapshot_id = snapshot_of(schedule.id)
    client.update_deployment_schedule(
        found.deployment_id,
        found.id,
        active=update.active,
        schedule=changed,
        # Else Prefect's server clears them.
        parameters={names.PARAMETER_SNAPSHOT_ID: str(snapshot_id)}
        if snapshot_id is not None
        else dict(found.parameters),
    )


def delete_schedule(client: SyncPrefectClient, component: str, schedule: ScheduleResponse) -> None:
    """Delete a schedule and the runs that it has planned. Nothing if Prefect has no such schedule.

    Warns of runs of other schedules that go with it, and where Prefect doesn't even have the deployment in which the
    schedule was made: it may be another one.
    """
    found = _find(client, component, schedule)
    if found is not None and found.deployment_id is not None:
        if others := _waiting_runs_of_others(client, found.deployment_id, schedule):
            # Prefect deletes what its schedules have planned for a deployment, and plans anew what is yet to come alone
            # (prefect/server/api/deployments.py, `delete_deployment_schedule`).
            _logger.warning(
                "With the schedule `%s` Prefect deletes %s waiting runs of other schedules of the pipeline, which were "
                "due already: %s. Run the pipeline by hand for those that you need.",
                schedule.name,
                len(others),
                ", ".join(run.name for run in others[:5]) + (", ..." if len(others) > 5 else ""),
            )
        client.delete_deployment_schedule(found.deployment_id, found.id)
    elif (made_in := _made_in(schedule)) is not None and not _has_deployment(client, made_in):
        _logger.warning(
            "%s has no deployment %s, in which the schedule `%s` was made: it was deleted, or it is in another "
            "Prefect, where the schedule %s goes on. Its runs are refused from now on; delete it there too.",
            where_it_is(),
            made_in,
            schedule.name,
            schedule.id,
        )


def _find(client: SyncPrefectClient, component: str, schedule: ScheduleResponse) -> DeploymentSchedule | None:
    if (made_in := _made_in(schedule)) is not None:
        return _of_deployment(client, made_in, schedule.id)
    if schedule.pipeline_id is None:
        return None
    # ZenML doesn't insist on metadata being stored.
    pipeline = Client().get_pipeline(schedule.pipeline_id, project=schedule.project_id).name
    deployment = find_deployment(client, pipeline, component)
    return _of_deployment(client, deployment.id, schedule.id) if deployment is not None else None


def _waiting_runs_of_others(
    client: SyncPrefectClient, deployment_id: UUID, schedule: ScheduleResponse
) -> list[FlowRun]:
    """The runs that other schedules of a deployment have planned for a time that has passed: at most 200 are seen."""
    found = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(timezone.utc)),
        ),
        limit=200,
    )
    return [run for run in found if run.auto_scheduled and zenml_schedule(run) != schedule.id]


def _made_in(schedule: ScheduleResponse) -> UUID | None:
    deployment_id = schedule.run_metadata.get(names.METADATA_DEPLOYMENT_ID)
    return UUID(str(deployment_id)) if deployment_id is not None else None


def _has_deployment(client: SyncPrefectClient, deployment_id: UUID) -> bool:
    try:
        client.read_deployment(deployment_id)
    except ObjectNotFound:
        return False
    return True


def _of_deployment(client: SyncPrefectClient, deployment_id: UUID, schedule_id: UUID) -> DeploymentSchedule | None:
    try:
        schedules = client.read_deployment_schedules(deployment_id)
    except ObjectNotFound:
        return None
    return next((schedule for schedule in schedules if schedule.slug == str(schedule_id)), None)

"""The Prefect deployment of a pipeline: one for each pipeline and orchestrator component, made when it is needed.

Creating a deployment is an upsert that deletes its schedules (prefect/server/models/deployments.py,
``create_deployment``): one that exists is read and updated where it differs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from pydantic import JsonValue

from bridge import names
from bridge.flow import zenml_pipeline

HOW_TO_RESUME = (
    "Turn on the switch `Pause or resume all schedules` on its page in Prefect's UI; an automation may have turned it "
    "off"
)

_logger = logging.getLogger(__name__)


def ensure_deployment(client: SyncPrefectClient, pipeline: str, component: str, work_pool: str) -> UUID:
    """Make sure that the deployment exists and is current; return its id. Leaves schedules and job variables alone."""
    found = find_deployment(client, pipeline, component)
    schema = zenml_pipeline.parameters.model_dump_for_openapi()
    tags = names.deployment_tags(pipeline)
    if found is None:
        return client.create_deployment(
            flow_id=client.create_flow_from_name(names.prefect_name(pipeline)),
            name=names.prefect_name(component),
            description=f"Runs of the ZenML pipeline {pipeline} on the orchestrator {component}. Managed by "
            f"{names.DISTRIBUTION}: running the pipeline again updates it.",
            version=version(names.DISTRIBUTION),
            entrypoint=names.FLOW_ENTRYPOINT,
            path=None,
            pull_steps=[],
            parameter_openapi_schema=schema,
            work_pool_name=work_pool,
            tags=tags,
        )
    current = DeploymentUpdate(
        version=version(names.DISTRIBUTION),
        entrypoint=names.FLOW_ENTRYPOINT,
        path=None,
        pull_steps=[],
        parameter_openapi_schema=schema,
        work_pool_name=work_pool,
        tags=[*found.tags, *(tag for tag in tags if tag not in found.tags)],
    )
    differing = {
        field: value
        for field in current.model_fields_set
        if (value := getattr(current, field)) != getattr(found, field)
    }
    if differing:
        client.update_deployment(found.id, DeploymentUpdate(**differing))
    return found.id


def find_deployment(client: SyncPrefectClient, pipeline: str, component: str) -> DeploymentResponse | None:
    """Return the deployment of a pipeline and a component, if there is one."""
    try:
        return client.read_deployment_by_name(f"{_in_url(pipeline)}/{_in_url(component)}")
    except ObjectNotFound:
        return None


def what_is_paused(deployment: str) -> str:
    """Say what it means that a deployment of this name is paused, by the switch in Prefect's UI or an automation."""
    return f"deployment `{deployment}` is paused: Prefect plans none of its schedules, whatever each of them says"


def _in_url(name: str) -> str:
    return names.url_segment(names.prefect_name(name))


def configure_jobs(
    client: SyncPrefectClient,
    deployment_id: UUID,
    work_queue: str | None,
    job_variables: Mapping[str, JsonValue],
    parameters: Mapping[str, str] | None = None,
) -> None:
    """Set work queue and job variables of all runs that the deployment's schedules start.

    Warns where the deployment is paused: then none of them does.

    ``parameters`` are those of runs whose schedule has lost its own (:mod:`bridge.submitting.scheduled`).

    Always an update, even of nothing: Prefect's scheduler soon looks at deployments that were updated
    (``schedule_recent_deployments``), and otherwise once a minute, which may be too late for a schedule's first run.
    """
    deployment = client.read_deployment(deployment_id)
    if deployment.paused:
        name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
        _logger.warning("The %s. %s.", what_is_paused(name), HOW_TO_RESUME)
    changes = DeploymentUpdate(version=deployment.version)
    if job_variables:
        changes.job_variables = dict(job_variables)
    if parameters:
        changes.parameters = {**deployment.parameters, **parameters}
    if work_queue:
        changes.work_queue_name = work_queue
        changes.work_pool_name = deployment.work_pool_name
    client.update_deployment(deployment_id, changes)

"""The signs of life of a lease (:mod:`bridge.cleanup.lease`), which ZenML keeps as metadata of a run or a step run."""

from __future__ import annotations

from datetime import datetime, timezone
from uuid import UUID

from zenml.client import Client
from zenml.enums import MetadataResourceTypes
from zenml.metadata.metadata_types import MetadataTypeEnum
from zenml.models import PipelineRunResponse, RunMetadataRequest, RunMetadataResource, StepRunResponse

from bridge import names
from bridge.flow_run import whereabouts


def renew(run: PipelineRunResponse, life: int = 1) -> None:
    """Write down that the flow of a run is at work, in this process, the ``life``-th of its flow run.

    Raises what ZenML's client raises.
    """
    _write(run.project_id, run.id, MetadataResourceTypes.PIPELINE_RUN, names.METADATA_FLOW_ALIVE, life)


def renew_step_run(project_id: UUID, step_run_id: UUID) -> None:
    """Write down that this process, which called a step operator, waits for the step run. Raises the same."""
    _write(project_id, step_run_id, MetadataResourceTypes.STEP_RUN, names.METADATA_CALLER_ALIVE, 1)


def _write(project_id: UUID, resource: UUID, kind: MetadataResourceTypes, key: str, life: int) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    Client().zen_store.create_run_metadata(
        RunMetadataRequest(
            project=project_id,
            resources=[RunMetadataResource(id=resource, type=kind)],
            values={key: f"{now} {whereabouts.of_this_process()} {life}"},
            types={key: MetadataTypeEnum.STRING},
        )
    )


def last_sign(run: PipelineRunResponse) -> str:
    """Return what the flow of a run, read just now, has written last; "" if it never wrote anything."""
    return str(run.run_metadata.get(names.METADATA_FLOW_ALIVE, ""))


def last_sign_of_caller(step_run: StepRunResponse) -> str:
    """Return what the caller of a step operator has written last about a step run, read just now."""
    return str(step_run.run_metadata.get(names.METADATA_CALLER_ALIVE, ""))

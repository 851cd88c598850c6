"""Step runs that nobody works on: all that ZenML knows of a step whose process is dead, or is yet to come."""

from __future__ import annotations

from zenml.client import Client
from zenml.config.step_configurations import Step
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse, StepRunRequest, StepRunResponse
from zenml.utils.time_utils import utc_now


def dynamic_step(run: PipelineRunResponse, name: str, source: str, **configuration: object) -> Step:
    """A step as the function of a dynamic pipeline makes it of ``module.attribute``, which no snapshot has."""
    module, _, attribute = source.partition(".")
    step = {
        "spec": {
            "source": {"module": module, "attribute": attribute, "type": "user"},
            "upstream_steps": [],
            "invocation_id": name,
        },
        "step_config_overrides": {"name": name, **configuration},
    }
    return Step.from_dict(step, pipeline_configuration=run.config, exclude_hook_sources=False)


def begin(
    run: PipelineRunResponse,
    step: str | None = None,
    status: ExecutionStatus = ExecutionStatus.RUNNING,
    *,
    dynamic: Step | None = None,
) -> StepRunResponse:
    """Write one down: of the run's first step, where none is named; ``dynamic`` is one that no snapshot has."""
    assert run.snapshot is not None
    request = StepRunRequest(
        name=step or next(iter(run.snapshot.step_configurations)),
        pipeline_run_id=run.id,
        project=run.project_id,
        status=status,
        start_time=utc_now(),
        dynamic_config=dynamic,
    )
    return Client().zen_store.create_run_step(request)

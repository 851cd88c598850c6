"""Snapshots as ZenML hands them out, made of its own models, without a store.

``Step.from_dict`` merges the pipeline's configuration into the steps exactly as the store does when it reads a
snapshot, so a snapshot of here differs from a stored one in its origin only (``test_compiled`` compares).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from zenml.config.pipeline_configurations import PipelineConfiguration
from zenml.config.step_configurations import Step
from zenml.models import (
    BuildItem,
    PipelineBuildResponse,
    PipelineBuildResponseBody,
    PipelineBuildResponseMetadata,
    PipelineSnapshotResponse,
    PipelineSnapshotResponseBody,
    PipelineSnapshotResponseMetadata,
    PipelineSnapshotResponseResources,
)
from zenml.models.v2.core.pipeline import PipelineResponse

SNAPSHOT_ID = UUID("7e3b1a52-6a0e-4a53-9a33-1d9be0b5a001")
NAME = "orchestrator"
KEY = f"orchestrator:{NAME}"
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class StepInput:
    """What a user writes on a step. ``settings`` are those of the orchestrator."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    upstream: Sequence[str] = ()
    retry: Mapping[str, Any] | None = None
    command: Sequence[str] | None = None
    step_operator: bool | str | None = None
    enable_cache: bool | None = None
    other_settings: Mapping[str, Any] = field(default_factory=dict)


def all_settings(
    settings: Mapping[str, Any], resources: Mapping[str, Any], other: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {
        **({KEY: dict(settings)} if settings else {}),
        **({"resources": dict(resources)} if resources else {}),
        **(other or {}),
    }


def snapshot(
    steps: Mapping[str, StepInput],
    *,
    name: str = "training",
    settings: Mapping[str, Any] | None = None,
    resources: Mapping[str, Any] | None = None,
    other_settings: Mapping[str, Any] | None = None,
    retry: Mapping[str, Any] | None = None,
    execution_mode: str = "continue_on_failure",
    enable_cache: bool | None = None,
    images: Mapping[str, str] | None = None,
    steps_to_skip: Sequence[str] = (),
    dynamic: bool = False,
) -> PipelineSnapshotResponse:
    """Make a snapshot. ``images`` has ZenML's keys: ``orchestrator`` and ``<step>.orchestrator``."""
    configuration = PipelineConfiguration.model_validate(
        {
            "name": name,
            "settings": all_settings(settings or {}, resources or {}, other_settings),
            "retry": retry,
            "execution_mode": execution_mode,
            "enable_cache": enable_cache,
            "steps_to_skip": set(steps_to_skip),
        }
    )
    return PipelineSnapshotResponse(
        id=SNAPSHOT_ID,
        body=PipelineSnapshotResponseBody(
            created=NOW, updated=NOW, project_id=SNAPSHOT_ID, runnable=True, deployable=False, is_dynamic=dynamic
        ),
        metadata=PipelineSnapshotResponseMetadata(
            run_name_template="run",
            pipeline_configuration=configuration,
            step_configurations={key: _step(key, step, configuration) for key, step in steps.items()},
            client_version="0.98.0",
            server_version="0.98.0",
        ),
        resources=PipelineSnapshotResponseResources(
            pipeline=PipelineResponse(id=SNAPSHOT_ID, name=name), build=None if images is None else _build(images)
        ),
    )


def _step(name: str, step: StepInput, configuration: PipelineConfiguration) -> Step:
    return Step.from_dict(
        {
            "spec": {
                "source": {"module": "steps", "attribute": "run", "type": "user"},
                "upstream_steps": list(step.upstream),
                "invocation_id": name,
            },
            "step_config_overrides": {
                "name": name,
                "settings": all_settings(step.settings, step.resources, step.other_settings),
                "retry": step.retry,
                "command": step.command,
                "step_operator": step.step_operator,
                "enable_cache": step.enable_cache,
            },
        },
        pipeline_configuration=configuration,
        exclude_hook_sources=False,
    )


def _build(images: Mapping[str, str]) -> PipelineBuildResponse:
    return PipelineBuildResponse(
        id=SNAPSHOT_ID,
        body=PipelineBuildResponseBody(created=NOW, updated=NOW, project_id=SNAPSHOT_ID),
        metadata=PipelineBuildResponseMetadata(
            images={key: BuildItem(image=image) for key, image in images.items()}, is_local=False, contains_code=True
        ),
    )

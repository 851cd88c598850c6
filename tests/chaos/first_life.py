"""What the first process of a flow run does. Imported before the fork."""

from __future__ import annotations

from typing import Any

import bridge.flow_run.carrying_out
import bridge.flow_run.revival
import bridge.orchestrator
import bridge.runners.modal  # noqa: F401
from tests.integration.lab import IMAGE


def call(folder: str, options: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Call the pipeline of a case; ``options`` are of the pipeline, ``settings`` among them the orchestrator's."""
    import chaos_steps  # type: ignore[import-not-found]
    from zenml.client import Client
    from zenml.config import DockerSettings

    Client().activate_stack(options.pop("stack"))
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    settings = {"docker": docker, "orchestrator": options.pop("settings")}
    pipeline = getattr(chaos_steps, options.pop("pipeline"))
    pipeline.with_options(settings=settings, **options)(**arguments)

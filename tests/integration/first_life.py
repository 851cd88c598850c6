"""What the first process of a flow run does: it calls a pipeline, as a user's script does. Imported before the fork."""

from __future__ import annotations

from typing import Any

import bridge.flow_run.carrying_out
import bridge.flow_run.revival
import bridge.orchestrator
import bridge.runners.modal
import bridge.runners.process  # noqa: F401
from tests.integration.lab import IMAGE


def call(folder: str, stack: str, pipeline: str, settings: dict[str, Any], arguments: dict[str, Any]) -> None:
    import crashes  # type: ignore[import-not-found]
    from zenml.client import Client
    from zenml.config import DockerSettings

    Client().activate_stack(stack)
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    prepared = getattr(crashes, pipeline).with_options(settings={"docker": docker, "orchestrator": settings})
    prepared(folder, **arguments)

"""Finding the snapshot that a person means."""

from __future__ import annotations

from uuid import UUID

from zenml.client import Client
from zenml.models import PipelineSnapshotResponse

from bridge.errors import RunNotPossible
from bridge.flow_run.open_run import load_snapshot


def find_snapshot(what: str) -> PipelineSnapshotResponse:
    """Return the snapshot of that id, or the newest one of the pipeline of that name.

    Raises ``RunNotPossible`` where there is none.
    """
    try:
        return load_snapshot(UUID(what))
    except ValueError:
        pass
    client = Client()
    named = client.list_pipelines(name=f"equals:{what}", size=1).items
    if not named:
        raise RunNotPossible(
            f"{what}: this ZenML server has no pipeline of that name, and it is no snapshot's id. `zenml pipeline "
            "list` shows the names, `zenml pipeline snapshot list` the ids."
        )
    found = client.list_snapshots(pipeline=named[0].id, named_only=False, sort_by="desc:created", size=1).items
    if not found:
        raise RunNotPossible(
            f"{what}: the pipeline has no snapshot yet. Run it once, or make one with its `create_snapshot`."
        )
    return load_snapshot(found[0].id)

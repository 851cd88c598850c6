"""How a flow takes up its ZenML run, and what becomes of that where it can't."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.enums import ExecutionStatus
from zenml.models import PipelineSnapshotResponse
from zenml.orchestrators.publish_utils import publish_failed_pipeline_run
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils

from bridge.errors import RunIsOver
from bridge.flow import zenml_pipeline
from bridge.run import adopt_run, environment_of, load_snapshot
from tests.integration.lab import IMAGE, PROJECT, Lab


def test_a_run_that_ends_between_two_looks_at_it(lab: Lab, tmp_path: Path) -> None:
    """It was read as running, and when its token is asked for ZenML gives none any more."""
    import shapes

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    settings = {"docker": DockerSettings(parent_image=IMAGE, skip_build=True)}
    pipeline = shapes.chain.with_options(settings=settings, execution_mode="fail_fast")
    pipeline.prepare(str(tmp_path))
    snapshot = load_snapshot(pipeline.create_snapshot(name=f"ends-{tmp_path.name}").id)
    run = create_placeholder_run(snapshot, str(uuid4()))
    assert environment_of(run, snapshot)
    publish_failed_pipeline_run(run.id)
    assert run.status is ExecutionStatus.INITIALIZING, "as it was read before"
    with pytest.raises(RunIsOver, match="failed already"):
        environment_of(run, snapshot)


def snapshot_of(lab: Lab, folder: Path, name: str, **settings: object) -> PipelineSnapshotResponse:
    import shapes

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    pipeline = shapes.chain.with_options(settings={"docker": docker, "orchestrator": settings})
    pipeline.prepare(str(folder))
    return load_snapshot(pipeline.create_snapshot(name=f"{name}-{folder.name}").id)


def test_a_run_is_told_from_its_children(lab: Lab, tmp_path: Path) -> None:
    """Those of a dynamic pipeline have its flow run's id, and snapshots of their own."""
    snapshot, of_child = (snapshot_of(lab, tmp_path, name) for name in ("root", "child"))
    flow_run_id = str(uuid4())
    root, _ = create_placeholder_run(snapshot, flow_run_id), create_placeholder_run(of_child, flow_run_id)
    assert adopt_run(snapshot, None, flow_run_id).id == root.id


def test_a_flow_that_can_not_begin_fails_the_run_that_it_has_made(lab: Lab, tmp_path: Path) -> None:
    snapshot = snapshot_of(lab, tmp_path, "limited", execution_mode="per_step", concurrency_limit="nobody-s")
    state = zenml_pipeline(snapshot.id, return_state=True)
    assert state.is_failed()
    assert "nobody-s" in str(state.message)
    (run,) = Client().list_pipeline_runs(orchestrator_run_id=str(state.state_details.flow_run_id)).items
    assert run.status is ExecutionStatus.FAILED

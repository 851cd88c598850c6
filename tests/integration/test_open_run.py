"""How a flow takes up its ZenML run, and what becomes of that where it can't."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Crashed
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.enums import ExecutionStatus
from zenml.models import PipelineSnapshotResponse
from zenml.orchestrators.publish_utils import publish_failed_pipeline_run
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils

from bridge.errors import NotTranslatable, RunIsOver
from bridge.flow import zenml_pipeline
from bridge.flow_run.open_run import adopt_run, load_snapshot, load_stack, open_run
from bridge.flow_run.revival import resume
from bridge.flow_run.run import environment_of
from bridge.submitting.submission import create_flow_run
from bridge.zenml_side.run_status import bind_run, end_run
from tests.integration.begun import begin
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


def test_domains_alone_are_refused_by_the_worker_which_knows_zenml_s_address(lab: Lab, tmp_path: Path) -> None:
    import shapes

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("modal", work_pool="elsewhere"))
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    own = {"outbound_domain_allowlist": ["zenml.example.com"]}
    pipeline = shapes.chain.with_options(settings={"docker": docker, "orchestrator": own})
    pipeline.prepare(str(tmp_path))
    snapshot = pipeline.create_snapshot(name=f"domains-{tmp_path.name}")
    with pytest.raises(NotTranslatable, match=r"ZenML's server is at http://127\.0\.0\.1"):
        open_run(snapshot.id, None, str(uuid4()))
    assert Client().list_pipeline_runs(snapshot_id=snapshot.id).total == 0


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


@pytest.mark.parametrize("how", ["stopped", "failed", "failed before it was stopped"])
def test_a_step_run_that_nobody_works_on_is_stopped_with_its_run(lab: Lab, tmp_path: Path, how: str) -> None:
    """Its process was killed over the request, which ZenML did all the same, after it had been asked what runs."""
    snapshot = snapshot_of(lab, tmp_path, "late")
    run = create_placeholder_run(snapshot, str(uuid4()))
    if how == "failed before it was stopped":
        publish_failed_pipeline_run(run.id)
    late = begin(run)
    end_run(run, failures={"": "as told"} if how == "failed" else {}, stopped=how != "failed")
    assert Client().get_run_step(late.id).status is ExecutionStatus.STOPPED
    assert Client().get_pipeline_run(run.id).status.value == how.split()[0]


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_a_run_that_ended_meanwhile_is_not_resumed(lab: Lab, tmp_path: Path, how: str) -> None:
    """Its flow had died; the message names ZenML's replay, and Prefect says the same as ZenML from then on."""
    snapshot = snapshot_of(lab, tmp_path, f"ended-{how}", execution_mode="per_step")
    plan = load_stack(snapshot)[1].plan(snapshot)
    run = create_placeholder_run(snapshot, None)
    flow_run, _ = create_flow_run(snapshot, run, plan)
    bind_run(run, str(flow_run.id))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, Crashed(), force=True)
        end_run(run, failures={"": "as told"} if how == "failed" else {}, stopped=how == "stopped")
        for some_id in (run.id, flow_run.id):
            with pytest.raises(RunIsOver, match=rf"is {how} already.*replay\(pipeline_run='{run.id}'") as raised:
                resume(some_id, sure=True, here=True, say=print)
            assert raised.value.stopped == (how == "stopped")
        state = client.read_flow_run(flow_run.id).state
    assert state is not None
    assert state.name == {"stopped": "Cancelled", "failed": "Failed"}[how]

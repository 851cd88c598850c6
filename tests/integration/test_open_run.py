"""A run that ends in the moment in which a flow takes it up."""

from __future__ import annotations

from uuid import uuid4

import pytest
from zenml.config import DockerSettings
from zenml.enums import ExecutionStatus
from zenml.orchestrators.publish_utils import publish_failed_pipeline_run
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils

from bridge.errors import RunIsOver
from bridge.run import environment_of, load_snapshot
from tests.integration.lab import IMAGE, PROJECT, Lab


def test_a_run_that_ends_between_two_looks_at_it(lab: Lab, tmp_path) -> None:
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

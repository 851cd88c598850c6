"""What local processes can't honour is said once a run, wherever one looks: many programs read the run's plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.utils import source_utils

from bridge.flow import zenml_pipeline
from tests.integration.lab import IMAGE, PROJECT, STACK_CODE, Lab, eventually

OURS = ": not used, runner='process'"
EACH = {"gpu", "image_source", "DockerSettings.parent_image", "DockerSettings.skip_build"}
OF_STEPS = {"cloud", "ResourceSettings.memory"}


def said(text: str) -> Counter[str]:
    """How often each field is named."""
    return Counter(line.partition(OURS)[0].split()[-1] for line in text.splitlines() if OURS in line)


def logs(flow_run_id: UUID) -> list[Any]:
    """All that Prefect has of a flow run and its task runs, sandbox output among it."""

    def read() -> list[Any]:
        with get_client(sync_client=True) as client:
            return client.read_logs(LogFilter(flow_run_id={"any_": [flow_run_id]}), limit=200)  # type: ignore[arg-type]

    return eventually(read, lambda found: any("Finished in state" in log.message for log in found))  # type: ignore[no-any-return]


def in_prefect(flow_run_id: UUID) -> Counter[str]:
    return said("\n".join(log.message for log in logs(flow_run_id)))


def once(fields: set[str]) -> Counter[str]:
    return Counter(dict.fromkeys(fields, 1))


PROGRAM = """
import json, os, sys
import wishful
from zenml.config import DockerSettings
from zenml.utils import source_utils

source_utils.set_custom_source_root(os.getcwd())
name, folder, image, settings = sys.argv[1:]
docker = DockerSettings(parent_image=image, skip_build=True)
pipeline = getattr(wishful, name).with_options(settings={"docker": docker, "orchestrator": json.loads(settings)})
print("flow run", pipeline(folder).orchestrator_run_id)
"""


def submitted(lab: Lab, folder: Path, pipeline: str, settings: Mapping[str, Any]) -> tuple[str, UUID]:
    """Run a pipeline from a program of its own: what its terminal shows, and its flow run."""
    lab.activate(lab.stack("process", image_source="modal"))
    argv = [sys.executable, "-c", PROGRAM, pipeline, str(folder), IMAGE, json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": f"{STACK_CODE}:{PROJECT}"}
    done = subprocess.run(argv, env=environment, cwd=PROJECT, capture_output=True, text=True)
    terminal = done.stdout + done.stderr
    assert done.returncode == 0, terminal
    return terminal, UUID(done.stdout.partition("flow run ")[2].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_a_static_pipeline(lab: Lab, tmp_path: Path, mode: str) -> None:
    settings = {"gpu": "T4", "cloud": "aws", "execution_mode": mode}
    terminal, flow_run_id = submitted(lab, tmp_path, "wishes", settings)
    of_steps = OF_STEPS if mode == "per_step" else {"cloud"}  # there memory says what runs side by side
    assert said(terminal) == once(EACH | of_steps)
    assert not in_prefect(flow_run_id), "it was said where the run was submitted"


@pytest.mark.slow
def test_isolated_steps(lab: Lab, tmp_path: Path) -> None:
    """They are known once they are called: the flow says it of the first one."""
    terminal, flow_run_id = submitted(lab, tmp_path, "dynamic_wishes", {"gpu": "T4"})
    assert said(terminal) == once(EACH | OF_STEPS)
    assert in_prefect(flow_run_id) == once(OF_STEPS)


@pytest.mark.slow
def test_a_flow_run_that_ZenML_did_not_submit(lab: Lab, tmp_path: Path) -> None:
    """Its own logs say it: a schedule or another deployment made it."""
    import wishful

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process", image_source="modal"))
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    given = {"docker": docker, "orchestrator": {"gpu": "T4", "execution_mode": "per_step"}}
    pipeline = wishful.wishes.with_options(settings=given)
    pipeline.prepare(str(tmp_path))
    snapshot = pipeline.create_snapshot(name=f"wishes-{tmp_path.name}")
    state = zenml_pipeline(snapshot.id, return_state=True)
    assert state.is_completed()
    flow_run_id = state.state_details.flow_run_id
    assert Client().list_pipeline_runs(orchestrator_run_id=str(flow_run_id)).items
    assert in_prefect(flow_run_id) == once(EACH | OF_STEPS)

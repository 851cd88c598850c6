"""A dynamic pipeline that has failed while an isolated step runs that might be tried again: it isn't, and all ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from zenml.client import Client

from tests.integration.lab import Lab, eventually
from tests.integration.under import Under


@pytest.mark.parametrize(
    ("pipeline", "place"),
    [
        ("given_up", "process"),
        pytest.param("given_up", "modal", marks=pytest.mark.slow),
        pytest.param("given_up_by_child", "process", marks=pytest.mark.slow),
        pytest.param("given_up_by_mode", "process", marks=pytest.mark.slow),
    ],
)
def test_a_step_that_fails_after_its_pipeline_has(lab: Lab, tmp_path: Path, pipeline: str, place: str) -> None:
    """ZenML's own runner waits for its retry for ever, which it doesn't begin."""
    import dynamics

    under = Under(lab, tmp_path).start(getattr(dynamics, pipeline), place, {})
    run_id = under.run_id  # before there is a child's

    def steps() -> dict[str, str]:
        runs = [Client().get_pipeline_run(run_id), *Client().list_pipeline_runs(parent_run_id=run_id).items]
        return {name: step.status.value for run in runs for name, step in run.steps.items()}

    assert eventually((tmp_path / "has-failed").exists, bool, 120)
    assert steps() == {"fail_after": "failed", "fails_when_told": "running"}
    (tmp_path / "go").touch()
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert steps() == {"fail_after": "failed", "fails_when_told": "stopped"}
    assert len(ran.traces("fails_when_told")) == 1
    title = "pipeline:given_up: fails_when_told" if pipeline == "given_up_by_child" else "fails_when_told"
    assert ran.states[title] == "Failed"
    text = "\n".join(lab.logs(ran.task_runs[pipeline], 1))
    assert "Step `fails_when_told` isn't tried again, since its pipeline has failed" in text

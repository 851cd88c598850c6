"""Prefect's API goes away in the middle of a run and comes back: the run goes on and ends as it would have."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.integration.lab import Lab
from tests.integration.under import Under

AWAY_SECONDS = float(os.environ.get("TEST_AWAY_SECONDS", "8"))


@pytest.mark.parametrize(
    ("back", "seconds"),
    [("before the end", AWAY_SECONDS), pytest.param("after the end", 60.0, marks=pytest.mark.slow)],
)
def test_the_api_is_away(lab: Lab, tmp_path: Path, back: str, seconds: float) -> None:
    """A step ends and another starts without Prefect; the last step ends before or after Prefect is back."""
    import stoppable

    under = Under(lab, tmp_path).start(stoppable.telling_twice, "process", {"execution_mode": "per_step"})
    under.until_steps({"first": "running"})
    run_id, away = under.run_id, threading.Event()
    lab.prefect.stop()
    try:
        (tmp_path / "go-first").touch()
        under.until_steps({"first": "completed", "second": "running"}, 60)
        if back == "after the end":
            (tmp_path / "go-second").touch()
            under.until_steps({"first": "completed", "second": "completed"}, 30)
        away.wait(seconds)
    finally:
        lab.prefect.start()
    (tmp_path / "go-second").touch()
    ran = under.join(120)
    assert ran.error is None
    assert ran.run.id == run_id
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.states == {"first": "Completed", "second": "Completed"}
    assert ran.inputs["second"] == {"first"}
    assert "first goes on" in lab.logs(ran.task_runs["first"])
    assert "second goes on" in lab.logs(ran.task_runs["second"])

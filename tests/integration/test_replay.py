"""What a run that has ended says of going on, typed as it says."""

from __future__ import annotations

from pathlib import Path

from bridge.errors import how_to_replay
from tests.integration.lab import Lab, Ran


@pytest.mark.slow
def test_what_is_left_of_a_failed_run_runs_in_a_new_one(lab: Lab, tmp_path: Path) -> None:
    import shapes

    stack = lab.stack("process")
    ran = lab.run(shapes.failing_once, stack, settings={"execution_mode": "per_step"}, into=tmp_path)
    assert (ran.status, ran.steps) == ("failed", {"first": "completed", "again": "failed"})
    typed = how_to_replay(ran.run.id).split("`")[1].replace("<pipeline>", "pipeline")
    lab.activate(stack)
    replayed = eval(typed, {"pipeline": shapes.failing_once})
    again = lab.read(Ran(tmp_path), replayed.id)
    assert (again.status, again.flow_run.state.name) == ("completed", "Completed")
    assert again.run.id != ran.run.id
    assert len(again.traces("first")) == 1, "what succeeded isn't run anew"
    assert (len(again.traces("again")), len(again.traces("last"))) == (2, 1)

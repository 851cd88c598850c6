"""What a run that has ended says of going on, typed as it says; and a replay that skips what it is told to skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import how_to_replay
from tests.integration.lab import IMAGE, Lab, Ran


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


@pytest.mark.slow
def test_a_replay_skips_what_it_is_told_to_skip(lab: Lab, tmp_path: Path) -> None:
    """Before it builds images ZenML takes those steps out of the snapshot, of which nothing may be left then."""
    import shapes
    from zenml.config import DockerSettings

    stack = lab.stack("modal")
    ran = lab.run(shapes.chain, stack, into=tmp_path)
    assert ran.steps == dict.fromkeys(["one", "add_1", "add_2"], "completed")
    docker = DockerSettings(parent_image=IMAGE, skip_build=True, prevent_build_reuse=True)
    pipeline = shapes.chain.with_options(settings={"docker": docker})
    lab.activate(stack)
    again = lab.read(Ran(tmp_path), pipeline.replay(pipeline_run=ran.run.id, skip=["one", "add_1"]).id)
    assert (again.status, again.flow_run.state.name) == ("completed", "Completed")
    assert again.steps == {"one": "skipped", "add_1": "skipped", "add_2": "completed"}
    assert [len(again.traces(step)) for step in ("one", "add_1", "add_2")] == [1, 1, 2]
    in_tasks = pipeline.with_options(settings={"docker": docker, "orchestrator": {"execution_mode": "per_step"}})
    shown = lab.read(Ran(tmp_path), in_tasks.replay(pipeline_run=ran.run.id, skip=["one", "add_1"]).id)
    assert shown.steps == again.steps
    assert shown.states == {"one": "Skipped", "add_1": "Skipped", "add_2": "Completed"}
    nothing = pipeline.replay(pipeline_run=ran.run.id, skip=["one", "add_1", "add_2"])
    assert {step.status.value for step in nothing.steps.values()} == {"skipped"}
    assert [len(again.traces(step)) for step in ("one", "add_1", "add_2")] == [1, 1, 3]

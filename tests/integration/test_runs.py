"""The main job, on both of Modal's backends and as local processes: a pipeline runs, both sides agree."""

from __future__ import annotations

import pytest

from tests.integration.lab import Lab


@pytest.fixture
def graphs(lab: Lab):  # type: ignore[no-untyped-def]
    import graphs

    return graphs


def test_diamond_per_step(lab: Lab, graphs, place: str) -> None:
    ran = lab.run(graphs.diamond, lab.stack(place), settings={"execution_mode": "per_step"})
    assert ran.error is None
    assert ran.status == "completed"
    assert ran.steps == dict.fromkeys(["one", "left", "right", "bottom"], "completed")
    assert ran.flow_run.state.name == "Completed"
    assert ran.states == dict.fromkeys(["one", "left", "right", "bottom"], "Completed")
    assert ran.inputs == {"one": set(), "left": {"one"}, "right": {"one"}, "bottom": {"left", "right"}}

"""ZenML's heartbeats of steps: they come while a step runs, and not where a user wants none."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from zenml.client import Client

from tests.integration.lab import Lab, eventually
from tests.integration.under import Under

PLACES = {
    "warm": ("telling", "modal", {"execution_mode": "per_step"}),
    "pipeline": ("telling", "process", {"execution_mode": "pipeline"}),
    "isolated": ("held_in_both", "process", {}),
}


@pytest.mark.slow  # ZenML's interval is 15 s
@pytest.mark.parametrize("wanted", [True, False], ids=["wanted", "unwanted"])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_gives_signs_of_life(lab: Lab, tmp_path: Path, place: str, wanted: bool) -> None:
    import dynamics
    import shapes

    name, runner, settings = PLACES[place]
    pipeline: Any = getattr(dynamics if place == "isolated" else shapes, name)
    steps = ("alone", "hangs") if place == "isolated" else ("hung",)
    under = Under(lab, tmp_path)
    under.start(pipeline, runner, settings, {} if wanted else {"enable_heartbeat": False})
    under.until_steps(dict.fromkeys(steps, "running"))

    def beats() -> list[datetime | None]:
        found = Client().get_pipeline_run(under.run_id).steps
        return [found[step].latest_heartbeat for step in steps]

    first = eventually(beats, lambda found: found[0] is not None, 20)
    later = eventually(beats, lambda found: found[0] != first[0], 25)
    for file in ("go", "go-here"):
        (tmp_path / file).touch()
    ran = under.join(120)
    assert ran.status == "completed"
    if wanted:
        assert first[0] is not None
        assert later[0] > first[0]
        assert later[1:] in ([], [None]), "ZenML wants none of inline steps"
    else:
        assert first == later == [None] * len(steps)

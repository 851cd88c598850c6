"""What each end of an isolated step's sandbox costs: as in `per_step` mode, all at once; and of the function's."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from bridge.flow_run.outcome import Cost
from tests.integration.ends import ENDS
from tests.integration.ends import STRUCK as FROM_OUTSIDE
from tests.integration.lab import Lab, eventually
from tests.integration.under import Under

SANDBOX = (*FROM_OUTSIDE, "timeout")
OWN_RETRY = tuple(end for end in SANDBOX if ENDS[end].per_step is Cost.OWN_RETRY)
INFRASTRUCTURE = tuple(end for end in SANDBOX if ENDS[end].per_step is Cost.INFRASTRUCTURE_RETRY)
STRUCK = {"alone": "evict", **{end: end for end in FROM_OUTSIDE}}
"""By step: how its sandbox is struck."""


def strike(lab: Lab, folder: Path, step: str, end: str) -> None:
    """Wait until the step's own code is under way, then strike the sandbox that it runs in."""
    trace = folder / f"{step}.jsonl"
    lines = eventually(lambda: trace.read_text() if trace.exists() else "", lambda text: "\n" in text, 240)
    getattr(lab.modal, end)(json.loads(lines.splitlines()[0])["sandbox"])


@pytest.mark.slow
@pytest.mark.timeout(600)  # fifteen interpreters, and one of them only ends by its timeout
def test_what_each_end_costs_an_isolated_step(lab: Lab, tmp_path: Path) -> None:
    """The infrastructure's: the same step run goes on in another sandbox. Its own: ZenML makes another step run."""
    import dynamics

    strikes = [threading.Thread(target=strike, args=(lab, tmp_path, step, end)) for step, end in STRUCK.items()]
    for thread in strikes:
        thread.start()
    ends = [*OWN_RETRY, *INFRASTRUCTURE]
    ran = lab.run(dynamics.struck_apart, lab.stack("modal"), into=tmp_path, ends=ends, timeout=120)
    for thread in strikes:
        thread.join()
    assert ran.error is None
    assert ran.steps == {**dict.fromkeys(ends, "completed"), "alone": "failed"}
    assert {step: found.version for step, found in ran.run.steps.items()} == {
        **dict.fromkeys(OWN_RETRY, 2),
        **dict.fromkeys(INFRASTRUCTURE, 1),
        "alone": 1,
    }
    assert ran.states == {
        "struck_apart": "Completed",
        **dict.fromkeys(OWN_RETRY, "Failed"),
        **{f"{end} (attempt 2)": "Completed" for end in OWN_RETRY},
        **dict.fromkeys(INFRASTRUCTURE, "Completed"),
        "alone": "Failed",
    }
    begun = {step: [trace["sandbox"] for trace in ran.traces(step)] for step in (*ends, "alone")}
    assert {step: len(set(found)) for step, found in begun.items()} == {**dict.fromkeys(ends, 2), "alone": 1}
    assert lab.sandboxes_by_step(ran) == {"": 1, **dict.fromkeys(ends, 2), "alone": 1}
    for said in (ran.task_runs["alone"].state.message, ran.run.steps["alone"].exception_info.message):
        assert "The sandbox was evicted" in said
    for end, why in (
        ("oom", "ran out of memory"),
        ("timeout", "its timeout"),
        ("terminate", "terminated from outside"),
    ):
        assert why in ran.task_runs[end].state.message


@pytest.mark.slow  # tests/unit/test_dynamic.py has the table
@pytest.mark.parametrize(
    ("end", "why"), [("oom", ""), ("time_out", "its timeout"), ("terminate", "terminated from outside")]
)
def test_what_an_end_of_the_function_s_sandbox_costs(lab: Lab, tmp_path: Path, end: str, why: str) -> None:
    """Out of memory, another one calls the function again, and an isolated step goes on; else the run fails."""
    import crashes

    under = Under(lab, tmp_path).start(crashes.dynamic, "modal", {})
    under.until_steps({"apart": "running", "here": "running"})
    getattr(lab.modal, end)(under.ran.traces("here")[0]["sandbox"])
    if not why:
        for step in ("apart-1", "here-2", "last-1"):
            (tmp_path / f"go-{step}").touch()
    ran = under.join(120)
    assert not lab.running(ran)
    if why:
        assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
        assert why in ran.flow_run.state.message
        assert ran.steps == {"apart": "stopped", "here": "stopped"}, "by ZenML's runner, at SIGTERM"
        assert ran.states == {"dynamic": "Failed", "apart": "Cancelled"}
        assert lab.sandboxes_by_step(ran) == {"": 1, "apart": 1}
    else:
        assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
        assert {name: step.version for name, step in ran.run.steps.items()} == {"apart": 1, "here": 2, "last": 1}
        assert ran.states == {"dynamic": "Completed", "apart": "Completed"}
        assert lab.sandboxes_by_step(ran) == {"": 2, "apart": 1}

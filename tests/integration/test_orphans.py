"""Sandboxes whose flow was killed: they end by themselves, and ZenML and Prefect say why."""

from __future__ import annotations

import time
from datetime import timezone
from pathlib import Path

import pytest

from bridge.cleanup.lease import age, grace
from bridge.cleanup.signs_of_life import last_sign
from tests.integration.flow_process import FlowProcess
from tests.integration.lab import Lab, Ran, eventually
from tests.integration.test_cli import call
from tests.integration.under import living

LEASE = 10
SLACK = 5
"""Seconds that a busy machine may take to end a sandbox and to tell ZenML."""


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        pytest.param("modal", "per_step", marks=pytest.mark.slow),
        pytest.param("process", "pipeline", marks=pytest.mark.slow),
        pytest.param("modal", "pipeline", marks=pytest.mark.slow),
        pytest.param("process", "per_step", marks=pytest.mark.slow),
        pytest.param("process", "dynamic", marks=pytest.mark.slow),
        pytest.param("modal", "dynamic", marks=pytest.mark.slow),
    ],
)
def test_a_flow_that_never_comes_back(lab: Lab, tmp_path: Path, place: str, mode: str) -> None:
    """In ``per_step`` one step is in a warm sandbox, in ``dynamic`` in that of the function; and one in its own."""
    stack = lab.stack(place)
    dynamic = mode == "dynamic"
    settings = {"orphan_timeout": LEASE, **({} if dynamic else {"execution_mode": mode})}
    pipeline = f"{'dynamics' if dynamic else 'stoppable'}.held_in_both"
    with FlowProcess(lab, tmp_path, stack, pipeline, settings) as flow:
        under = flow.under.until_steps({"hangs": "running", "alone": "running"})
        # Longer than the lease, which the flow renews.
        begun = max(trace["time"] for step in ("hangs", "alone") for trace in under.ran.traces(step))
        assert eventually(lambda: time.time() > begun + 1.5 * LEASE, bool, 60)
        assert all(living(pid) for pid in under.pids())
    killed = time.monotonic()
    assert under.all_dead(60)
    print(f"{place}, {mode}: dead {time.monotonic() - killed:.1f} s after the flow, whose lease was {LEASE} s")
    # Its task runs never end by themselves, and aren't waited for.
    ran = lab.read(Ran(tmp_path), under.run_id, begun=False)
    assert (ran.status, ran.steps) == ("failed", {"hangs": "failed", "alone": "failed"}), flow.log.read_text()[-2000:]
    said = f"It gave no sign of life for {LEASE} s, its `orphan_timeout`"
    assert said in ran.run.exception_info.traceback
    for step in ran.run.steps.values():
        assert said in step.get_hydrated_version().exception_info.traceback
        ended = age(last_sign(ran.run), step.end_time.replace(tzinfo=timezone.utc))
        assert ended is not None
        assert LEASE <= ended <= grace(LEASE) + SLACK, "not before its time, and a quarter later at the latest"
    # Prefect can't know; the sweep tells it.
    assert ran.flow_run.state.name == "Running"
    shown = call("sweep", "--stack", stack, "--yes", "--tolerance", "0")
    assert (shown.returncode, f"({ran.run.id}): ended" in shown.stdout) == (0, True), shown.stdout + shown.stderr
    flow_run, task_runs = lab.read_flow_run(ran.flow_run.id)
    assert flow_run.state.name == "Failed"
    assert "Nobody worked on this run: its flow gave its last sign of life" in flow_run.state.message
    assert {task_run.state.name for task_run in task_runs.values()} == {"Failed"}

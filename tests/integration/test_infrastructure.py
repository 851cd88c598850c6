"""What isn't the user's fault costs infrastructure retries, and a person can see it; what is theirs costs none.

How running sandboxes end is :mod:`tests.integration.test_ends`'s; here are those that can't be had.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, LogFilter
from zenml.client import Client

from bridge.runners.base import OUTAGE_SECONDS
from tests.integration.lab import Lab, Ran, eventually
from tests.integration.under import Under, cancel

AWAY_SECONDS = float(os.environ.get("TEST_AWAY_SECONDS", "12"))
"""More than the SDK rides out by itself, which is 0.7 s, and more than a step's sandbox takes to start."""


@pytest.fixture
def shapes(lab: Lab):  # type: ignore[no-untyped-def]
    import shapes

    return shapes


def warnings(ran: Ran) -> list[str]:
    """What was warned of in the logs of the run and of its tasks."""
    chosen = LogFilter(flow_run_id={"any_": [ran.flow_run.id]}, level={"ge_": 30})  # type: ignore[arg-type]
    with get_client(sync_client=True) as client:
        return [log.message for log in client.read_logs(chosen, limit=200)]


def table(ran: Ran) -> dict[str, dict[str, Any]]:
    """The rows of the table artifact, by step."""
    chosen = ArtifactFilter(flow_run_id={"any_": [ran.flow_run.id]}, type={"any_": ["table"]})  # type: ignore[arg-type]
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(artifact_filter=chosen)
    return {row["step"]: row for row in json.loads(str(found.data))}


@pytest.mark.slow  # test_ends.py has one that never starts, tests/contract/test_modal_runner.py each reason
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_a_sandbox_that_can_not_be_had(lab: Lab, shapes, fresh_image: str, mode: str) -> None:
    """A pull that fails, no machine in time, a machine that doesn't come up; the fourth sandbox runs the step."""
    lab.modal.image_pull_fails(1)
    lab.modal.capacity("", 0)
    lab.modal.set(init_failures=1)
    known = {box.id for box in lab.modal.sandboxes()}

    gave_up = threading.Event()

    def machines_come_free() -> None:
        def ours() -> list[str]:
            return [box.status for box in lab.modal.sandboxes() if box.id not in known]

        if "terminated" in eventually(ours, lambda found: "terminated" in found, 200):
            gave_up.set()
        lab.modal.capacity("", None)

    freeing = threading.Thread(target=machines_come_free)
    freeing.start()
    ran = lab.run(
        shapes.retried,
        lab.stack("modal"),
        settings={"execution_mode": mode, "capacity_timeout": 1, "warm": False},
        image=fresh_image,
        times=0,
    )
    freeing.join()
    assert gave_up.is_set()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    task_run = ran.task_runs["fail_first" if mode == "per_step" else "retried"]
    assert task_run.run_count == (1 if mode == "per_step" else 4)
    assert ran.run.steps["fail_first"].version == 1, "none of the step's own retries was used"
    told = [text for text in warnings(ran) if "The sandbox never started" in text]
    for number, why in enumerate(["connection reset", "no machine", "failed to initialize"], 1):
        assert [text for text in told if why in text and f"sandbox {number} of 4" in text], told
    assert table(ran)["fail_first"]["lost sandboxes"] == "3: The sandbox never started"
    if mode == "per_step":
        assert table(ran)["after"]["lost sandboxes"] == ""


@pytest.mark.parametrize(
    ("how", "mode", "warm", "seconds"),
    [
        pytest.param("unavailable", "per_step", False, AWAY_SECONDS, marks=pytest.mark.slow),
        pytest.param("unavailable", "per_step", True, 60.0, marks=pytest.mark.slow),
        pytest.param("unavailable", "pipeline", False, 60.0, marks=pytest.mark.slow),
        pytest.param("pause", "per_step", False, 60.0, marks=pytest.mark.slow),
        pytest.param("unavailable", "dynamic", False, 60.0, marks=pytest.mark.slow),
    ],
)
def test_modals_control_plane_is_away(
    lab: Lab, tmp_path: Path, how: str, mode: str, warm: bool, seconds: float
) -> None:
    """In it a step ends and, in a sandbox of its own, the next one has to start: without any infrastructure retry.

    In a warm sandbox that one starts meanwhile: nobody has to be asked for another one.
    """
    import stoppable

    dynamic = mode == "dynamic"
    settings = {"infrastructure_retries": 0, **({} if dynamic else {"execution_mode": mode, "warm": warm})}
    pipeline = stoppable.telling_apart if dynamic else stoppable.telling_twice
    under = Under(lab, tmp_path).start(pipeline, "modal", settings)
    under.until_steps({"first": "running"})
    back = threading.Event()
    if how == "unavailable":
        lab.modal.unavailable(seconds)
    else:
        lab.modal.pause()
    (tmp_path / "go-first").touch()
    (tmp_path / "go-second").touch()
    in_one = warm or mode == "pipeline"
    second = {"second": "completed"} if in_one else {"second": "provisioning"} if dynamic else {}
    under.until_steps({"first": "completed", **second})
    back.wait(seconds)
    if how == "pause":
        lab.modal.resume()
    ran = under.join(120)
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert {step.version for step in ran.run.steps.values()} == {1}
    assert {task_run.run_count for task_run in ran.task_runs.values()} == {1}
    assert len(lab.sandboxes(ran)) == (1 if in_one else 3 if dynamic else 2)
    if mode == "per_step":
        assert {row["lost sandboxes"] for row in table(ran).values()} == {""}
    if not in_one:
        assert [text for text in warnings(ran) if "It is asked again" in text]


@pytest.mark.slow
def test_sandboxes_are_created_at_the_rate_that_the_settings_say(lab: Lab, shapes) -> None:
    """Five that are wanted at once take four seconds at one a second; by default it would be one second."""
    settings = {"execution_mode": "per_step", "warm": False, "create_rate": 1}
    ran = lab.run(shapes.fan_out, lab.stack("modal"), settings=settings, width=5, seconds=0.0)
    assert (ran.error, ran.status) == (None, "completed")
    created = sorted(box.created_at for box in lab.sandboxes(ran))
    assert len(created) == 5
    # Not each distance: what is counted is when a create arrives, and a busy machine holds one up now and then.
    assert created[-1] - created[0] >= 3.6, created


@pytest.mark.slow
def test_creates_that_come_too_fast_cost_nothing(lab: Lab, shapes) -> None:
    """Modal refuses most of five that come at once; each is asked for again, and none counts as lost.

    Nor is it a want of machines: they come for longer than anybody waits for those.
    """

    def creates() -> int:
        return sum(number for name, number in lab.modal.stats().calls.items() if name.startswith("SandboxCreate"))

    settings = {"execution_mode": "per_step", "warm": False, "create_rate": 50, "infrastructure_retries": 0}
    settings["capacity_timeout"] = 1
    before = creates()
    lab.modal.set(creates_per_second=1)
    try:
        ran = lab.run(shapes.fan_out, lab.stack("modal"), settings=settings, width=5, seconds=0.0)
    finally:
        lab.modal.set(creates_per_second=None)
    assert (ran.error, ran.status) == (None, "completed")
    assert creates() - before > 5, "none was refused"
    assert {step.version for step in ran.run.steps.values()} == {1}
    assert len(lab.sandboxes(ran)) == 5
    assert {row["lost sandboxes"] for row in table(ran).values()} == {""}


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_cancelled_while_modal_is_away(lab: Lab, tmp_path: Path) -> None:
    """For longer than one call is repeated: the sandbox is ended all the same, once that can be asked for."""
    import stoppable

    settings = {"execution_mode": "per_step", "warm": False}
    under = Under(lab, tmp_path).start(stoppable.clinging, "modal", settings)
    under.until_steps({"hangs": "running", "clings": "running"})
    lab.modal.unavailable(OUTAGE_SECONDS + 15)
    cancel(under.flow_run_id)
    assert under.all_dead(OUTAGE_SECONDS + 120)
    ran = under.join(60)
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "clings": "stopped"}


@pytest.mark.slow
def test_a_token_that_is_revoked_in_the_middle_is_not_infrastructure(lab: Lab, tmp_path: Path) -> None:
    """The step that runs goes on as far as it can; the next one fails at once, and nothing is tried again."""
    import stoppable

    right = lab.modal.token
    under = Under(lab, tmp_path).start(stoppable.telling_twice, "modal", {"execution_mode": "per_step", "warm": False})
    under.until_steps({"first": "running"})
    try:
        (tmp_path / "go-first").touch()
        lab.modal.wait_for(under.ran.traces("first")[0]["sandbox"])  # the next one isn't asked for yet
        lab.modal.token = ("ak-other", "as-other")
        ran = under.join(120)
    finally:
        lab.modal.token = right
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.task_runs["second"].run_count == 1
    assert "modal setup" in ran.task_runs["second"].state.message
    assert not [text for text in warnings(ran) if "sandbox 1 of" in text]
    assert "as-loopback" not in str([warnings(ran), ran.error, ran.task_runs["second"].state.message])
    assert Client().get_pipeline_run(ran.run.id).steps["first"].status == "completed"


@pytest.mark.parametrize("mode", ["pipeline", pytest.param("per_step", marks=pytest.mark.slow)])
def test_a_token_that_is_revoked_while_a_sandbox_runs(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Nobody can be with its sandbox any more: the run fails and says why; it isn't taken for a success."""
    import stoppable

    settings = {"execution_mode": mode, "warm": False, "orphan_timeout": 10}
    under = Under(lab, tmp_path).start(stoppable.telling_twice, "modal", settings)
    under.until_steps({"first": "running"})
    lab.modal.set(revoked=True)
    try:
        ran = under.join(120)
    finally:
        lab.modal.set(revoked=False)
    assert (ran.status, ran.flow_run.state.type.value) == ("failed", "FAILED")
    assert "token" in (ran.flow_run.state.message or "").lower(), ran.flow_run.state.message
    # Nor could it be ended: without its flow it ends by itself.
    eventually(lambda: lab.running(ran), lambda running: not running, 60)

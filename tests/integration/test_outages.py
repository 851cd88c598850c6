"""Prefect's API, ZenML's server and the artifact store go away in the middle of a run and come back: it ends right."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Unfinished
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import SyncClientContext
from requests.exceptions import RequestException
from zenml.models import PipelineRunResponse
from zenml.pipelines.run_utils import create_placeholder_run
from zenml.utils import source_utils

from bridge.cleanup.lease import FIRST_SIGN_SECONDS
from bridge.errors import BridgeError
from bridge.flow_run.open_run import load_snapshot, load_stack
from bridge.flow_run.resume import task_runs_of
from bridge.flow_run.said import Said, read_said
from bridge.plan import Plan
from bridge.submitting.submission import create_flow_run, run_here
from tests.integration.lab import PROJECT, Lab, Ran, eventually
from tests.integration.under import Under
from tests.servers import Server

AWAY_SECONDS = float(os.environ.get("TEST_AWAY_SECONDS", "8"))
LONG_SECONDS = float(os.environ.get("TEST_LONG_AWAY_SECONDS", "60"))

slow = pytest.mark.slow


def cold(mode: str) -> dict[str, Any]:
    return {"execution_mode": mode, "warm": False}


@contextmanager
def gone(server: Server) -> Iterator[None]:
    """It isn't there while the block runs."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def ended_right(ran: Ran, lab: Lab, mode: str) -> None:
    """Both steps have ended well, on both sides, once, and nobody lost their output."""
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    task_runs = ("first", "second") if mode == "per_step" else (next(iter(ran.states)),)
    assert ran.states == dict.fromkeys(task_runs, "Completed")
    assert {len(ran.traces(step)) for step in ("first", "second")} == {1}
    if mode == "per_step":
        assert ran.inputs["second"] == {"first"}
    lines = [line for task_run in task_runs for line in lab.logs(ran.task_runs[task_run])]
    said = [line.rpartition("] ")[2] for line in lines if line.endswith("goes on")]
    assert said == ["first goes on", "second goes on"]


@pytest.mark.parametrize(
    ("place", "mode", "back", "seconds"),
    [
        pytest.param("process", "per_step", "before the end", AWAY_SECONDS, marks=slow),  # tests/chaos has it too
        pytest.param("process", "per_step", "after the end", LONG_SECONDS, marks=slow),
        pytest.param("process", "pipeline", "before the end", LONG_SECONDS, marks=slow),
        pytest.param("modal", "per_step", "before the end", LONG_SECONDS, marks=slow),  # in a warm sandbox
    ],
)
def test_the_api_is_away(lab: Lab, tmp_path: Path, place: str, mode: str, back: str, seconds: float) -> None:
    """A step ends and another starts without Prefect; the last step ends before or after Prefect is back."""
    import stoppable

    under = Under(lab, tmp_path).start(stoppable.telling_twice, place, {"execution_mode": mode})
    under.until_steps({"first": "running"})
    run_id, away = under.run_id, threading.Event()
    with gone(lab.prefect):
        (tmp_path / "go-first").touch()
        under.until_steps({"first": "completed", "second": "running"}, 60)
        if back == "after the end":
            (tmp_path / "go-second").touch()
            under.until_steps({"first": "completed", "second": "completed"}, 30)
        away.wait(seconds)
    (tmp_path / "go-second").touch()
    ran = under.join(120)
    assert ran.run.id == run_id
    ended_right(ran, lab, mode)
    if place == "modal":
        assert lab.sandboxes_by_step(ran) == {"": 1}


def submitted(lab: Lab, folder: Path) -> tuple[PipelineRunResponse, FlowRun, Plan]:
    """A run that is to begin."""
    import shapes

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    shapes.diamond.prepare(str(folder))
    snapshot = load_snapshot(shapes.diamond.create_snapshot(name=f"begins-{folder.name}").id)
    run = create_placeholder_run(snapshot)
    _, orchestrator = load_stack(snapshot)
    plan = orchestrator.plan(snapshot)
    flow_run, _ = create_flow_run(snapshot, run, plan)
    return run, flow_run, plan


@slow  # a flow run begins while Prefect is away, or ZenML, which its client alone waits half a minute for
@pytest.mark.parametrize(
    ("who", "says"), [("prefect", "The run waits for Prefect's API"), ("zenml", "ZenML can't be reached")]
)
def test_a_flow_run_that_is_to_begin_waits(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture, who: str, says: str
) -> None:
    """Prefect's engine asks its first question but once, and where ZenML is away nobody could end the run there.

    So it is also in a process that has asked for the server's version before, which Prefect does once.
    """
    with SyncClientContext.get_or_create():
        pass
    run, flow_run, plan = submitted(lab, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with gone({"prefect": lab.prefect, "zenml": lab.zenml}[who]):
            running = pool.submit(run_here, flow_run, plan)
            eventually(lambda: says in caplog.text or running.done(), bool, 60)
            assert not running.done(), running.exception()
        running.result(180)
    ran = lab.read(Ran(tmp_path), run.id)
    assert (ran.status, ran.flow_run.state.name, ran.flow_run.run_count) == ("completed", "Completed", 1)


@slow  # ZenML is away for longer than a flow that begins waits for it
def test_a_flow_that_waits_for_zenml_leaves_before_it_counts_as_dead(lab: Lab, tmp_path: Path) -> None:
    """Else somebody would go on with its run beside it."""
    _, flow_run, plan = submitted(lab, tmp_path)
    with ThreadPoolExecutor(1) as pool, gone(lab.zenml):
        running = pool.submit(run_here, flow_run, plan)
        assert isinstance(running.exception(2 * FIRST_SIGN_SECONDS), (BridgeError, RequestException))
    with get_client(sync_client=True) as client:
        after = client.read_flow_run(flow_run.id)
    assert after.state is not None
    assert after.state.is_failed()
    assert after.start_time is not None
    assert (after.state.timestamp - after.start_time).total_seconds() < FIRST_SIGN_SECONDS


@slow  # half a minute without Prefect, which is what it is about
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_sandboxes_outlive_their_lease_while_only_the_api_is_away(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Prefect is away for three times `orphan_timeout` under a step that runs: its flow is there all the same."""
    import stoppable

    under = Under(lab, tmp_path).start(stoppable.telling_twice, "modal", {**cold(mode), "orphan_timeout": 10})
    under.until_steps({"first": "running"})
    with gone(lab.prefect):
        threading.Event().wait(30)
        under.until_steps({"first": "running"}, 0)
    (tmp_path / "go-first").touch()
    (tmp_path / "go-second").touch()
    ran = under.join(120)
    ended_right(ran, lab, mode)
    assert {step.version for step in ran.run.steps.values()} == {1}


@slow
@pytest.mark.parametrize(
    ("place", "mode", "how"),
    [
        ("modal", "per_step", "own sandboxes"),
        ("modal", "per_step", "warm"),
        ("modal", "pipeline", "one sandbox"),
        ("process", "per_step", "own sandboxes"),
    ],
)
def test_zenmls_server_is_away(lab: Lab, tmp_path: Path, place: str, mode: str, how: str) -> None:
    """A step comes to its end meanwhile, and can't say so: ZenML's client alone would give up after 30 s.

    For three times `orphan_timeout`: time in which nobody can be asked is no sign that the flow is gone.
    """
    import stoppable

    settings = {**cold(mode), "warm": how == "warm", "orphan_timeout": round(LONG_SECONDS / 3)}
    under = Under(lab, tmp_path).start(stoppable.telling_twice, place, settings)
    under.until_steps({"first": "running"})
    away = threading.Event()
    with gone(lab.zenml):
        (tmp_path / "go-first").touch()
        (tmp_path / "go-second").touch()
        away.wait(LONG_SECONDS)
    ran = under.join(180)
    ended_right(ran, lab, mode)
    assert {step.version for step in ran.run.steps.values()} == {1}
    assert {task_run.run_count for task_run in ran.task_runs.values()} == {1}


@slow
def test_zenmls_server_is_away_from_a_dynamic_pipeline(lab: Lab, tmp_path: Path) -> None:
    """From its function and an inline step in one sandbox, and from an isolated step in another."""
    import crashes

    under = Under(lab, tmp_path).start(crashes.dynamic, "modal", {})
    under.until_steps({"apart": "running", "here": "running"})
    away = threading.Event()
    with gone(lab.zenml):
        for name in ("apart-1", "here-1", "last-1"):
            (tmp_path / f"go-{name}").touch()
        away.wait(LONG_SECONDS)
    ran = under.join(180)
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert {name: step.version for name, step in ran.run.steps.items()} == {"apart": 1, "here": 1, "last": 1}
    assert {len(ran.traces(step)) for step in ("apart", "here", "last")} == {1}


@slow
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_the_artifact_store_is_away(lab: Lab, tmp_path: Path, mode: str) -> None:
    """A step can't write its output: that costs one of its own retries. The next attempt waits for the user's code."""
    import stoppable

    under = Under(lab, tmp_path).start(stoppable.telling_thrice, "modal", cold(mode))
    under.until_steps({"first": "running"})
    away, closed = threading.Event(), lab.folder / "artifacts" / ".away"
    closed.touch()
    try:
        (tmp_path / "go-first").touch()
        (tmp_path / "go-second").touch()
        away.wait(LONG_SECONDS)
    finally:
        closed.unlink()
    ran = under.join(180)
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert {name: (step.status.value, step.version) for name, step in ran.run.steps.items()} == {
        "first": ("completed", 2),
        "second": ("completed", 1),
    }
    assert set(ran.states.values()) == {"Completed"}
    assert {step: len(ran.traces(step)) for step in ("first", "second")} == {"first": 2, "second": 1}


@slow
def test_the_artifact_store_is_away_and_the_step_may_not_be_tried_again(lab: Lab, tmp_path: Path) -> None:
    """Both sides say that it failed, and of what."""
    import stoppable

    under = Under(lab, tmp_path).start(stoppable.telling_twice, "modal", cold("per_step"))
    under.until_steps({"first": "running"})
    closed = lab.folder / "artifacts" / ".away"
    closed.touch()
    try:
        (tmp_path / "go-first").touch()
        ran = under.join(120)
    finally:
        closed.unlink()
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.states == {"first": "Failed", "second": "NotRun"}
    assert "The artifact store can't be reached" in ran.task_runs["first"].state.message
    assert not eventually(lambda: lab.running(ran), lambda running: not running, 20)


@slow
@pytest.mark.parametrize(
    ("read", "nothing"),
    [(lambda client: read_said(client, [uuid4()]), Said()), (lambda client: task_runs_of(client, uuid4()), {})],
    ids=["logs", "task runs"],
)
def test_what_an_earlier_process_left_is_read_when_prefect_is_back(
    lab: Lab, read: Callable[[PrefectClient], Awaitable[Said | dict[UUID, TaskRun]]], nothing: object
) -> None:
    entered, away = threading.Event(), threading.Event()

    async def look() -> Said | dict[UUID, TaskRun]:
        async with get_client() as client:
            entered.set()
            await asyncio.to_thread(away.wait, 60)
            return await read(client)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(asyncio.run, look())
        assert entered.wait(60)
        with gone(lab.prefect):
            away.set()
            with pytest.raises(Unfinished):
                looking.result(5)
        assert looking.result(60) == nothing

"""Every way to stop a run: afterwards nothing of it is alive, and both sides say so."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from zenml.client import Client

from bridge import names
from tests.integration.lab import IMAGE, PROJECT, Lab, Ran, eventually
from tests.integration.lives import Lives
from tests.integration.test_outages import gone
from tests.integration.under import Under, cancel, living
from tests.integration.workers import Worker, make_pool

PER_STEP = {"execution_mode": "per_step"}


@pytest.fixture
def stoppable(lab: Lab):  # type: ignore[no-untyped-def]
    import stoppable

    return stoppable


def ended(ran: Ran) -> tuple[str, str]:
    return ran.status, ran.flow_run.state.name


@pytest.mark.parametrize(
    ("place", "mode"),
    # test_limits.py cancels one in `per_step` mode
    [pytest.param("modal", "per_step", marks=pytest.mark.slow), ("process", "pipeline")],
)
def test_cancelled_in_prefect(lab: Lab, stoppable, tmp_path: Path, place: str, mode: str) -> None:
    under = Under(lab, tmp_path).start(stoppable.held, place, {"execution_mode": mode})
    under.until_steps({"hangs": "running", "again": "retrying"})
    cancel(under.flow_run_id)
    assert under.all_dead()
    ran = under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "again": "stopped"}
    assert "cancelled in Prefect" in str(ran.error)
    if mode == "per_step":
        assert ran.states == {"hangs": "Cancelled", "again": "Cancelled", "later": "NotRun"}
        assert "hangs stopped" in ran.task_runs["later"].state.message
    else:
        assert set(ran.states.values()) == {"Cancelled"}


@pytest.mark.slow
def test_cancelled_while_a_retry_waits_for_its_place(lab: Lab, stoppable, tmp_path: Path) -> None:
    """Its attempt has begun for Prefect and not for ZenML, which would wait for it for ever."""
    under = Under(lab, tmp_path).start(stoppable.in_line, "process", {**PER_STEP, "max_parallelism": 1})
    under.until_steps({"hangs": "running", "again": "retrying"})
    with get_client(sync_client=True) as client:
        again = names.task_run_id(str(under.flow_run_id), "again")
        assert eventually(lambda: client.read_task_run(again).run_count, lambda count: count == 2, 60) == 2
    cancel(under.flow_run_id)
    ran = under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "again": "stopped"}
    assert ran.states == {"hangs": "Cancelled", "again": "Cancelled", "below": "NotRun", "far": "NotRun"}


@pytest.mark.slow
def test_a_failed_step_whose_retry_is_given_up_is_stopped_on_both_sides(lab: Lab, stoppable, tmp_path: Path) -> None:
    """``bad`` fails for good, so that no step begins any more; then ``late`` fails, for which ZenML sees a retry."""
    from zenml.enums import ExecutionMode

    under = Under(lab, tmp_path)
    under.start(stoppable.given_up, "process", PER_STEP, {"execution_mode": ExecutionMode.STOP_ON_FAILURE})
    under.until_steps({"bad": "running", "late": "running"})
    (tmp_path / "fail-bad").touch()
    with get_client(sync_client=True) as client:
        bad = names.task_run_id(str(under.flow_run_id), "bad")
        assert eventually(lambda: client.read_task_run(bad).state, lambda state: state.is_failed(), 60).is_failed()
    (tmp_path / "fail-late").touch()
    ran = under.join()
    assert ended(ran) == ("failed", "Failed")
    assert ran.steps == {"bad": "failed", "late": "stopped"}
    assert ran.states == {"bad": "Failed", "late": "Cancelled"}
    assert "ValueError: as told" in ran.task_runs["late"].state.message
    assert len(under.ran.traces("late")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_cancelled_in_prefect_after_a_step_has_failed(lab: Lab, stoppable, tmp_path: Path, mode: str) -> None:
    """ZenML refuses to stop such a run, and takes new step runs of it; Prefect's cancel ends it all the same."""
    from zenml.enums import ExecutionMode

    under = Under(lab, tmp_path)
    options = {"execution_mode": ExecutionMode.CONTINUE_ON_FAILURE}
    under.start(stoppable.limping, "process", {"execution_mode": mode}, options)
    under.until_steps({"hangs": "running", "bad": "failed", "again": "retrying"})
    cancel(under.flow_run_id)
    assert under.all_dead()
    ran = under.join()
    assert ended(ran) == ("failed", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "bad": "failed", "again": "stopped"}
    assert [run.version for run in ran.run.steps.values()] == [1, 1, 1], "no attempt that never was"
    if mode == "per_step":
        not_run = {"later": "NotRun", "below_bad": "NotRun"}
        assert ran.states == {"hangs": "Cancelled", "again": "Cancelled", "bad": "Failed", **not_run}
    assert "ValueError" in ran.flow_run.state.message


@pytest.mark.slow  # tests/host/test_pipeline.py and tests/unit/test_ready.py let what runs end
def test_stopped_gracefully_in_zenml(lab: Lab, stoppable, tmp_path: Path) -> None:
    """One step gives way to ZenML's own interruption, the other is killed when its 30 s are over."""
    from zenml.utils import run_utils

    under = Under(lab, tmp_path).start(stoppable.clinging, "modal", PER_STEP)
    under.until_steps({"hangs": "running", "clings": "running"})
    run_utils.stop_run(run=Client().get_pipeline_run(under.run_id), graceful=True)
    interrupted = eventually(lambda: under.ran.traces("clings", "interrupted"), bool, 25)
    assert interrupted
    assert living(interrupted[0]["pid"])
    assert under.all_dead(45)
    ran = under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "clings": "stopped"}
    assert ran.states == {"hangs": "Cancelled", "clings": "Cancelled", "later": "NotRun"}
    assert "stopped in ZenML" in ran.flow_run.state.message


def test_stopped_by_force_in_zenml(lab: Lab, stoppable, tmp_path: Path) -> None:
    from zenml.utils import run_utils

    under = Under(lab, tmp_path).start(stoppable.held_well, "process", {"execution_mode": "pipeline"})
    under.until_steps({"hangs": "running", "again": "retrying"})
    run_utils.stop_run(run=Client().get_pipeline_run(under.run_id), graceful=False)
    assert under.all_dead()
    ran = under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "again": "stopped"}


@pytest.mark.parametrize(
    ("mode", "graceful"),
    [
        pytest.param("per_step", False, marks=pytest.mark.slow),
        pytest.param("per_step", True, marks=pytest.mark.slow),
        pytest.param("pipeline", False, marks=pytest.mark.slow),
    ],
)
def test_stopped_in_zenml_after_its_flow_was_killed(lab: Lab, tmp_path: Path, mode: str, graceful: bool) -> None:
    """Nobody has told Prefect, which says Running. One step runs, one waits for its retry."""
    from zenml.utils import run_utils

    with Lives(lab, tmp_path) as lives:
        lives.begin("beside", "process", {"execution_mode": mode}, steps=["runs", "waits"], delay=600)
        lives.until("runs")
        lives.until("waits")
        lives.fail("waits-1")
        lives.go("waits-1")
        lives.until_zenml({"runs": "running", "waits": "retrying"})
        lives.kill()
        run_utils.stop_run(run=Client().get_pipeline_run(lives.under.run_id), graceful=graceful)
    assert lives.under.all_dead()
    ran = lives.under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"runs": "stopped", "waits": "stopped"}
    task_runs = ("runs", "waits") if mode == "per_step" else ("beside",)
    assert ran.states == dict.fromkeys(task_runs, "Cancelled")


@pytest.mark.slow
@pytest.mark.parametrize(("waits", "graceful"), [("Scheduled", True), ("AwaitingRetry", False)])
def test_stopped_in_zenml_while_it_waits_to_go_on(lab: Lab, tmp_path: Path, waits: str, graceful: bool) -> None:
    """For a worker that isn't there: after `modal-prefect resume`, and where Prefect runs an evicted flow again."""
    from prefect.states import Scheduled
    from zenml.utils import run_utils

    with Lives(lab, tmp_path) as lives:
        lives.begin("dynamic", "process", {})
        lives.until_zenml({"apart": "running", "here": "running"})
        lives.until("apart")
        lives.until("here")
        lives.kill()
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(lives.under.flow_run_id, Scheduled(name=waits), force=True)
        run_utils.stop_run(run=Client().get_pipeline_run(lives.under.run_id), graceful=graceful)
    assert lives.under.all_dead(60)
    ran = lives.under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"apart": "stopped", "here": "stopped"}


@pytest.mark.slow
@pytest.mark.parametrize(("place", "graceful"), [("process", False), ("process", True), ("modal", False)])
def test_a_dynamic_run_is_stopped_in_zenml_after_its_flow_was_killed(
    lab: Lab, tmp_path: Path, place: str, graceful: bool
) -> None:
    """The same where one step runs in the function's sandbox, and one in its own."""
    from zenml.utils import run_utils

    with Lives(lab, tmp_path) as lives:
        lives.begin("dynamic", place, {})
        lives.until_zenml({"apart": "running", "here": "running"})
        lives.until("apart")
        lives.until("here")
        lives.kill()
        run_utils.stop_run(run=Client().get_pipeline_run(lives.under.run_id), graceful=graceful)
    assert lives.under.all_dead(60)
    ran = lives.under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"apart": "stopped", "here": "stopped"}
    assert ran.states == {"dynamic": "Cancelled", "apart": "Cancelled"}


@pytest.mark.slow
def test_stopped_gracefully_between_two_steps(lab: Lab, stoppable, tmp_path: Path) -> None:
    """In one sandbox: the second step is refused, which is no failure, though nobody has seen the stop here."""
    from zenml.utils import run_utils, source_utils

    from tests.integration.unwatched import run_unwatched

    def stop(run_id: UUID) -> None:
        assert eventually(lambda: (tmp_path / "first.jsonl").exists(), bool, 90)
        run_utils.stop_run(run=Client().get_pipeline_run(run_id), graceful=True)
        (tmp_path / "go-first").touch()

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    pipeline = stoppable.telling_twice.with_options(settings={"orchestrator": {"execution_mode": "pipeline"}})
    pipeline.prepare(str(tmp_path))
    run_id, state = run_unwatched(pipeline.create_snapshot(name=f"between-{tmp_path.name}").id, stop)
    assert state.is_cancelled(), state.message
    ran = lab.read(Ran(tmp_path), run_id)
    assert ended(ran) == ("stopped", "Cancelled")
    assert ran.steps == {"first": "completed"}
    assert ran.states == {"telling_twice": "Cancelled"}


@pytest.mark.slow
def test_the_last_sandbox_is_lost(lab: Lab, stoppable, tmp_path: Path) -> None:
    """Nothing is left that ZenML would wait for: neither the step that ran, nor the one that waits for its retry."""
    settings = {"execution_mode": "pipeline", "infrastructure_retries": 0}
    under = Under(lab, tmp_path).start(stoppable.held_well, "modal", settings)
    under.until_steps({"hangs": "running", "again": "retrying"})
    lab.modal.evict(only_sandbox(lab, under))
    ran = under.join()
    assert ended(ran) == ("failed", "Failed")
    assert ran.steps == {"hangs": "failed", "again": "failed"}
    assert "evicted" in ran.flow_run.state.message


@pytest.mark.slow
def test_the_sandbox_is_lost_while_its_run_is_being_stopped(lab: Lab, stoppable, tmp_path: Path) -> None:
    from zenml.utils import run_utils

    under = Under(lab, tmp_path).start(stoppable.clinging, "modal", {"execution_mode": "pipeline"})
    under.until_steps({"hangs": "running", "clings": "running"})
    run_utils.stop_run(run=Client().get_pipeline_run(under.run_id), graceful=True)
    lab.modal.lose(only_sandbox(lab, under))
    ran = under.join()
    assert ended(ran) == ("stopped", "Cancelled")
    assert set(ran.steps.values()) == {"stopped"}


def only_sandbox(lab: Lab, under: Under) -> str:
    (box,) = [box for box in lab.modal.sandboxes() if box.tags.get("zenml_run_id") == str(under.run_id)]
    return str(box.id)


@pytest.mark.slow
def test_a_step_that_fails_before_the_stop_is_seen_is_not_tried_again(lab: Lab, stoppable, tmp_path: Path) -> None:
    """ZenML has it as failed for good, though it has retries left: so has Prefect."""
    from zenml.utils import run_utils, source_utils

    from tests.integration.unwatched import run_unwatched

    def stop(run_id: UUID) -> None:
        assert eventually(lambda: (tmp_path / "late.jsonl").exists(), bool, 90)
        run_utils.stop_run(run=Client().get_pipeline_run(run_id), graceful=True)
        (tmp_path / "fail-late").touch()

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("process"))
    pipeline = stoppable.tried_again.with_options(settings={"orchestrator": PER_STEP})
    pipeline.prepare(str(tmp_path))
    run_id, _ = run_unwatched(pipeline.create_snapshot(name=f"late-{tmp_path.name}").id, stop)
    ran = lab.read(Ran(tmp_path), run_id)
    assert (ran.steps, ran.states) == ({"late": "failed"}, {"late": "Failed"})
    assert (ran.run.steps["late"].version, ran.task_runs["late"].run_count, len(ran.traces("late"))) == (1, 1, 1)


@pytest.mark.slow
def test_interrupted_when_the_last_step_is_over(lab: Lab, tmp_path: Path) -> None:
    """While the flow only waits for Prefect's API: there is nothing left to stop, and both sides say so."""
    under = Under(lab, tmp_path)

    def until_said(what: str) -> None:
        log = tmp_path / "script.log"
        assert eventually(lambda: what in log.read_text(), bool, 60), log.read_text()[-3000:]

    with under.script("stoppable.telling_twice", "process", PER_STEP) as process:
        (tmp_path / "go-first").touch()
        under.until_steps({"first": "completed", "second": "running"})
        with gone(lab.prefect):
            (tmp_path / "go-second").touch()
            until_said("second | Finished in state Completed")
            process.send_signal(signal.SIGINT)
            until_said("Interrupted: the run is being stopped")
        code = process.wait(60)
    said = (tmp_path / "script.log").read_text()
    ran = under.join()
    assert ended(ran) == ("completed", "Completed"), said[-3000:]
    assert ran.states == {"first": "Completed", "second": "Completed"}
    assert code == 0, said[-3000:]
    assert "RunStopped" not in said


@pytest.mark.slow  # test_live.py has Ctrl-C in a terminal, and test_demo.py the lines where there is none
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize(
    ("pipeline", "other"),
    [("stoppable.held", {"again": "retrying"}), ("dynamics.held", {"hangs_here": "running"})],
    ids=["static", "dynamic"],
)
def test_the_process_is_interrupted(
    lab: Lab, tmp_path: Path, pipeline: str, other: dict[str, str], number: signal.Signals
) -> None:
    under = Under(lab, tmp_path)
    with under.script(pipeline, "process", {}) as process:
        under.until_steps({"hangs": "running", **other})
        process.send_signal(number)
        assert under.all_dead()
        code = process.wait(30)
    said = (tmp_path / "script.log").read_text()
    ran = under.join()
    assert ended(ran) == ("stopped", "Cancelled"), said[-3000:]
    assert ran.steps == {"hangs": "stopped", **dict.fromkeys(other, "stopped")}, said[-3000:]
    assert set(ran.states.values()) == {"Cancelled"}
    assert code != 0
    assert "RunStopped: The run was stopped: the process in which its flow ran was interrupted." in said
    assert "still executing" not in said
    # No terminal: plain lines, each with its time and its step, and what is stopped.
    ours = re.findall(r"^(.*\d\d:\d\d:\d\d.{0,4} \| (?:(?!INFO|WARN|ERROR)[^|]+) \| .*)$", said, re.MULTILINE)
    assert all(re.match(r"\d\d:\d\d:\d\d \| ", line) and "\x1b" not in line for line in ours), ours
    assert "held" in {line.split(" | ")[1] for line in ours}, said[-3000:]
    assert any("Interrupted: the run is being stopped" in line for line in ours), said[-3000:]


@pytest.fixture
def worker(lab: Lab, tmp_path: Path) -> Iterator[Callable[[UUID], UUID]]:
    """A process worker in another folder; call it to run a snapshot in it, for the id of the flow run."""
    from prefect.client.schemas.actions import WorkPoolCreate

    from bridge import names
    from bridge.flow import zenml_pipeline

    pool = f"stopping-{tmp_path.name}"[:60]
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        flow_id = client.create_flow(zenml_pipeline)
        deployment = client.create_deployment(
            flow_id,
            pool,
            entrypoint=names.FLOW_ENTRYPOINT,
            work_pool_name=pool,
            pull_steps=[],
            enforce_parameter_schema=False,
        )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    started = Worker(pool, tmp_path, cwd=elsewhere).start()

    def run(snapshot_id: UUID) -> UUID:
        with get_client(sync_client=True) as client:
            made = client.create_flow_run_from_deployment(deployment, parameters={"snapshot_id": str(snapshot_id)})
        flow_run_id: UUID = made.id
        return flow_run_id

    yield run
    started.stop()


@pytest.mark.slow  # test_status.py stops one through a worker
def test_a_workers_flow_is_cancelled(lab: Lab, stoppable, worker: Callable[[UUID], UUID], tmp_path: Path) -> None:
    from zenml.config import DockerSettings
    from zenml.utils import source_utils

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("modal"))
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    held = stoppable.held.with_options(settings={"docker": docker})
    held.prepare(str(tmp_path))
    under = Under(lab, tmp_path)
    flow_run_id = worker(held.create_snapshot(name=f"stopped-{tmp_path.name}").id)
    under.until_steps({"hangs": "running", "again": "retrying"})
    cancel(flow_run_id)
    assert under.all_dead()
    ran = under.join()
    deadline = time.monotonic() + 30
    while not ran.flow_run.state.is_final() and time.monotonic() < deadline:
        ran = under.join()
    assert ended(ran) == ("stopped", "Cancelled"), (tmp_path / "worker.log").read_text()[-3000:]
    assert ran.steps == {"hangs": "stopped", "again": "stopped"}


@pytest.mark.slow  # half a minute
def test_a_worker_that_is_terminated_drains(lab: Lab, tmp_path: Path) -> None:
    """Its flow gets no signal and runs to its end; then the worker goes."""
    import shapes

    pool = f"drained-{tmp_path.name}"[:60]
    make_pool(pool)
    worker = Worker(pool, tmp_path / "worker", command=("modal-prefect", "worker")).start()
    stack = lab.stack("process", work_pool=pool, synchronous=False)
    try:
        under = Under(lab, tmp_path)
        lab.run(shapes.telling, stack, settings={"execution_mode": "pipeline"}, into=tmp_path, begun=False)
        under.until_steps({"hung": "running"})
        assert worker.process is not None
        worker.process.terminate()
        assert eventually(lambda: "Draining" in worker.log.read_text(), bool, 60)
        late = lab.run(shapes.telling, stack, into=tmp_path / "late", begun=False)
        assert worker.process.poll() is None
        assert not under.all_dead(0)
        (tmp_path / "go").touch()
        assert worker.process.wait(60) == 0
    finally:
        worker.stop()
    assert ended(under.join()) == ("completed", "Completed")
    assert lab.read(late, late.run.id, begun=False).flow_run.state.is_scheduled(), "nobody took it"

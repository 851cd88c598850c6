"""Dynamic pipelines: the function in one sandbox, isolated steps in sandboxes of their own, all of it in Prefect."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner
from prefect.client.orchestration import get_client
from zenml.cli.cli import cli
from zenml.client import Client
from zenml.config.schedule import Schedule
from zenml.enums import ExecutionMode, ExecutionStatus, RunWaitConditionResolution
from zenml.orchestrators.publish_utils import publish_pipeline_run_status_update
from zenml.utils import run_utils

from bridge import names
from bridge.errors import RunNotPossible
from bridge.flow_run.revival import resume
from bridge.submitting import submission
from tests.integration.lab import PROJECT, Lab, Ran, asked, eventually
from tests.integration.lives import Lives
from tests.integration.test_outages import gone
from tests.integration.under import Under, cancel


@pytest.fixture
def dynamics(lab: Lab) -> Any:
    import dynamics

    return dynamics


def sandboxes(ran: Ran, step: str) -> set[str]:
    return {trace["sandbox"] for trace in ran.traces(step)}


@pytest.mark.parametrize(
    "place",
    ["modal-v2", pytest.param("modal-v1", marks=pytest.mark.slow), pytest.param("process", marks=pytest.mark.slow)],
    indirect=True,
)
def test_everything(lab: Lab, dynamics: Any, place: str) -> None:
    """A map, a loop, a condition, futures, retries here and apart, a child pipeline, commands here and apart."""
    ran = lab.run(dynamics.everything, lab.stack(place))
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.run.outputs["total"].load() == 5 + 2 + 2 + 11 + 100
    assert set(ran.steps.values()) == {"completed"}
    assert ran.states == {
        "everything": "Completed",
        "map:square:0": "Completed",
        "map:square:1": "Completed",
        "again": "Failed",
        "again (attempt 2)": "Completed",
        "shell": "Completed",
        "pipeline:inner: apart": "Completed",
    }
    tokens = [trace["tokens"] for step in ("seeds", "map:square:0") for trace in ran.traces(step)]
    if place == "process":  # which has this process's variables, but for credentials
        assert not [name for found in tokens for name in found if name.startswith("MODAL") or "KEY" in name]
    else:
        assert tokens == [[], []]
    here = sandboxes(ran, "seeds")
    assert len(here) == 1
    assert sandboxes(ran, "add") == sandboxes(ran, "inline_again") == here
    apart = [
        trace["sandbox"] for step in ("map:square:0", "map:square:1", "again", "apart") for trace in ran.traces(step)
    ]
    assert len(apart) == len({*apart, *here}) - 1 == 5
    assert [trace["step"] for trace in ran.traces("inline_again")] == ["inline_again"] * 2
    assert (ran.folder / "written").exists()
    assert (ran.folder / "written_here").read_text() == "x\n"
    check_tasks(lab, ran, here)
    if place == "modal":
        boxes = lab.sandboxes(ran)
        (shell,) = (box for box in boxes if box.tags.get("zenml_step") == "shell")
        (square,) = (box for box in boxes if box.id == ran.run.steps["map:square:0"].run_metadata["modal_sandbox_id"])
        assert (square.cpu_milli, square.memory_mib, square.gpu_count) == (500, 245, 0)
        assert (shell.gpu_type, shell.gpu_count) == ("T4", 1)
        told = ran.run.steps["shell"].run_metadata
        assert (told["modal_sandbox_id"], str(told["modal_sandbox_url"])) == (shell.id, names.sandbox_page(shell.id))
        assert told["prefect_task_run_id"] == str(ran.task_runs["shell"].id)


def check_tasks(lab: Lab, ran: Ran, here: set[str]) -> None:
    """Times, inputs and output of the task runs of `everything`, whose function ran ``here``."""
    assert all(task_run.start_time < task_run.end_time for task_run in ran.task_runs.values())
    assert {name: above for name, above in ran.inputs.items() if above} == {"shell": {"again (attempt 2)"}}
    written = {
        name: [line for line in lab.logs(task_run) if line.startswith(("the square", "the command"))]
        for name, task_run in ran.task_runs.items()
    }
    (sandbox,) = here
    assert {name: lines for name, lines in written.items() if lines} == {
        "everything": [f"the command here writes in {sandbox or ''}".strip()],
        "map:square:0": ["the square of 1"],
        "map:square:1": ["the square of 2"],
        "shell": ["the command writes"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_a_command_that_fails_where_the_function_runs(lab: Lab, dynamics: Any, place: str) -> None:
    ran = lab.run(dynamics.commanding, lab.stack(place))
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"first": "completed", "second": "failed"}
    assert ran.states == {"commanding": "Failed"}
    assert "returned non-zero exit status 3" in ran.flow_run.state.message
    assert "the command breaks" in lab.logs(ran.task_runs["commanding"])
    assert (ran.folder / "first").exists()
    assert not (ran.folder / "third").exists()


def left(lab: Lab, dynamics: Any, stack: str, folder: Path) -> dict[str, Any]:
    """What there is of a run in ZenML, without ids and times."""
    hooks = {name: getattr(dynamics, name) for name in ("on_start", "on_end", "on_success")}
    folder.mkdir()
    ran = lab.run(
        dynamics.everything, stack, into=folder, options={"environment": {"HOOKS": f"{folder}/hooks"}, **hooks}
    )
    assert ran.error is None
    runs = Client().list_pipeline_runs(orchestrator_run_id=ran.run.orchestrator_run_id, hydrate=True).items
    return {
        "runs": {run.child_key: run.status for run in runs},
        "steps": {
            (run.child_key, name): (step.status, step.version, [one.load() for one in outputs(step)])
            for run in runs
            for name, step in run.steps.items()
        },
        "upstream": {name: set(step.spec.upstream_steps) for name, step in ran.run.steps.items()},
        "outputs": {name: found.load() for name, found in ran.run.outputs.items()},
        "hooks": (folder / "hooks").read_text().splitlines(),
    }


def outputs(step: Any) -> list[Any]:
    return [version for versions in step.outputs.values() for version in versions]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_what_zenmls_local_orchestrator_leaves(lab: Lab, dynamics: Any, tmp_path: Path, place: str) -> None:
    expected = left(lab, dynamics, "default", tmp_path / "local")
    assert len(expected["steps"]) == 9
    assert expected["hooks"] == ["start", "end None", "success"]
    assert left(lab, dynamics, lab.stack(place), tmp_path / "ours") == expected


@pytest.mark.slow
def test_cancelled_in_prefect(lab: Lab, dynamics: Any, tmp_path: Path, place: str) -> None:
    under = Under(lab, tmp_path).start(dynamics.held, place, {})
    under.until_steps({"hangs": "running", "hangs_here": "running"})
    cancel(under.flow_run_id)
    assert under.all_dead()
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "hangs_here": "stopped"}
    assert ran.states == {"held": "Cancelled", "hangs": "Cancelled"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("modal-v2", ["--graceful"]),
        ("modal-v2", []),
        ("modal-v1", []),
        ("process", ["--graceful"]),
        ("process", []),
    ],
    indirect=["place"],
)
def test_stopped_in_zenml(lab: Lab, dynamics: Any, tmp_path: Path, place: str, options: list[str]) -> None:
    under = Under(lab, tmp_path).start(dynamics.held, place, {})
    under.until_steps({"hangs": "running", "hangs_here": "running"})
    zenml("stop", under.run_id, "--yes", *options)
    assert under.all_dead(60)
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert set(ran.steps.values()) == {"stopped"}
    assert ran.states == {"held": "Cancelled", "hangs": "Cancelled"}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["modal", "process"])
def test_a_function_that_a_stop_does_not_trouble(lab: Lab, dynamics: Any, tmp_path: Path, place: str) -> None:
    """It comes to its end though its step was stopped: the run was stopped all the same, and isn't completed."""
    under = Under(lab, tmp_path).start(dynamics.untroubled, place, {})
    under.until_steps({"hangs": "running"})
    zenml("stop", under.run_id, "--yes", "--graceful")
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped"}
    assert ran.states == {"untroubled": "Cancelled", "hangs": "Cancelled"}


@pytest.mark.slow
def test_a_command_needs_no_way_to_zenml(lab: Lab, dynamics: Any, tmp_path: Path) -> None:
    """Of a step that has to report it is refused: it could reach this ZenML by no domain."""
    ran = lab.run(dynamics.fenced, lab.stack("modal"), into=tmp_path)
    assert (ran.status, ran.steps) == ("completed", {"inside": "completed"})
    assert (tmp_path / "inside").exists()


def told(dynamics: Any, folder: Path) -> dict[str, Any]:
    """Options of a pipeline whose run hooks write down in this folder that they were called."""
    folder.mkdir(exist_ok=True)
    hooks = ("on_start", "on_end", "on_success", "on_failure", "on_pause", "on_resume")
    return {"environment": {"HOOKS": f"{folder}/hooks"}, **{name: getattr(dynamics, name) for name in hooks}}


def hooks(folder: Path) -> list[str]:
    return (folder / "hooks").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
@pytest.mark.parametrize("mode", list(ExecutionMode))
def test_a_failure(lab: Lab, dynamics: Any, tmp_path: Path, mode: ExecutionMode, place: str) -> None:
    """It fails for good; what else runs is stopped, or comes to its end; what needs it never starts."""
    options = {"execution_mode": mode, **told(dynamics, tmp_path)}
    ran = lab.run(dynamics.failing, lab.stack(place), options=options)
    fast, goes_on = mode is ExecutionMode.FAIL_FAST, mode is ExecutionMode.CONTINUE_ON_FAILURE
    assert (ran.status, ran.flow_run.state.name) == (("completed", "Completed") if goes_on else ("failed", "Failed"))
    assert ran.steps == {"fail_after": "failed", "hangs": "stopped" if fast else "completed"}
    assert ran.states == {
        "failing": "Completed" if goes_on else "Failed",
        "fail_after": "Failed",
        "hangs": "Cancelled" if fast else "Completed",
    }
    assert "ValueError: as told" in ran.task_runs["fail_after"].state.message
    if not goes_on:
        # Which of the two depends on whether ZenML's runner or the function's own wait sees the failure first.
        said = ran.flow_run.state.message
        assert "as told" in said or "Step `fail_after` failed" in said
    expected = lab.run(dynamics.failing, "default", options={**options, **told(dynamics, tmp_path / "local")})
    assert ran.status == expected.status
    assert ran.steps["fail_after"] == expected.steps["fail_after"]
    # Not what the hooks are given: of a step that nobody waited for in the function's own process ZenML makes an error
    # of its own, and of an isolated one that of the step.
    names = [[line.split()[0] for line in hooks(folder)] for folder in (tmp_path, tmp_path / "local")]
    assert names[0] == names[1] == (["start", "end", "success"] if goes_on else ["start", "end", "failure"])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_paused_resumed_and_tried_again(
    lab: Lab, dynamics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The same flow run goes on each time, and what has succeeded isn't run again."""
    monkeypatch.chdir(PROJECT)  # where ZenML's commands look for the code
    ran = lab.run(dynamics.asking, lab.stack(place), options=told(dynamics, tmp_path))
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("paused", "Paused")
    assert ran.states == {"asking": "Paused", "apart": "Completed"}
    assert hooks(tmp_path) == ["start", "pause"]
    condition = ran.run.active_wait_condition
    Client().resolve_run_wait_condition(condition.id, RunWaitConditionResolution.CONTINUE, result=41)
    zenml("resume", ran.run.id)
    again = lab.read(Ran(ran.folder), ran.run.id)
    assert (again.status, again.flow_run.state.name) == ("failed", "Failed")
    assert "ValueError: no go" in again.flow_run.state.message
    assert hooks(tmp_path)[2:] == ["resume", "end no go", "failure ValueError no go"]
    (ran.folder / "go").touch()
    zenml("retry", ran.run.id)
    again = lab.read(Ran(ran.folder), ran.run.id)
    assert (again.status, again.flow_run.state.name) == ("completed", "Completed")
    assert again.flow_run.id == ran.flow_run.id
    assert again.flow_run.run_count == 3
    assert [len(again.traces(step)) for step in ("one", "apart")] == [1, 1]
    assert again.run.steps["add"].output.load() == 2 + 41
    assert hooks(tmp_path)[5:] == ["resume", "end None", "success"], "there is no hook of another try"
    if place == "modal":
        assert lab.sandboxes_by_step(again) == {"": 3, "apart": 1}


@pytest.mark.slow
def test_its_zenml_run_is_deleted(lab: Lab, tmp_path: Path) -> None:
    under = Under(lab, tmp_path)
    with under.script("dynamics.held", "modal", {}) as process:
        under.until_steps({"hangs": "running", "hangs_here": "running"})
        flow_run_id = under.flow_run_id
        Client().delete_pipeline_run(under.run_id)
        process.wait(90)
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run_id).state
    log = (tmp_path / "script.log").read_text()
    assert state is not None
    assert (state.name, "its ZenML run was deleted" in (state.message or "")) == ("Cancelled", True), log[-6000:]
    assert under.all_dead()


@pytest.mark.slow
def test_stopped_while_paused(lab: Lab, dynamics: Any) -> None:
    ran = lab.run(dynamics.asking, lab.stack("process"))
    assert (ran.status, ran.flow_run.state.name) == ("paused", "Paused")
    orchestrator = Client().active_stack.orchestrator
    assert orchestrator.fetch_status(ran.run)[0] is ExecutionStatus.PAUSED
    run_utils.stop_run(run=ran.run, graceful=False)
    ran = lab.read(ran, ran.run.id)
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["stopped", "resumed"])
def test_whoever_resumed_it_died_before_it_went_on(
    lab: Lab, dynamics: Any, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """As `zenml pipeline runs resume` that is killed: it can be stopped, and `modal-prefect resume` goes on with it."""
    monkeypatch.chdir(PROJECT)
    ran = lab.run(dynamics.asking, lab.stack("process"))
    condition = ran.run.active_wait_condition
    Client().resolve_run_wait_condition(condition.id, RunWaitConditionResolution.CONTINUE, result=41)
    publish_pipeline_run_status_update(ran.run.id, ExecutionStatus.RESUMING)
    submission.go_on(ran.run)
    if ends == "stopped":
        run_utils.stop_run(run=Client().get_pipeline_run(ran.run.id), graceful=True)
    else:
        (ran.folder / "go").touch()
        with pytest.raises(RunNotPossible, match=r"Scheduled for \d+ s and has given no sign of life yet"):
            resume(ran.run.id, sure=False, here=False, say=print)
        resume(ran.run.id, sure=True, here=False, say=print)
    again = lab.read(Ran(ran.folder), ran.run.id)
    status, state, runs = {"stopped": ("stopped", "Cancelled", 1), "resumed": ("completed", "Completed", 2)}[ends]
    assert (again.status, again.flow_run.state.name, again.flow_run.run_count) == (status, state, runs)
    assert [len(again.traces(step)) for step in ("one", "apart")] == [1, 1]


def zenml(command: str, run_id: UUID, *options: str) -> None:
    """What `zenml pipeline runs ...` does, in this process."""
    CliRunner().invoke(cli, ["pipeline", "runs", command, str(run_id), *options])


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Which of Modal's backends the SDK of this process, and of those it starts, asks for sandboxes."""
    monkeypatch.setenv("MODAL_SANDBOX_V2", "0" if backend == "v1" else "1")


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--graceful"]], ids=["forced", "graceful"])
def test_a_workers_run_is_asked_after_and_stopped(
    lab: Lab, pool: str, dynamics: Any, tmp_path: Path, options: list[str]
) -> None:
    stack = lab.stack("modal", work_pool=pool, synchronous=False)
    under = Under(lab, tmp_path).start(dynamics.held, "modal", {}, stack=stack, begun=False)
    both = {"hangs": "running", "hangs_here": "running"}
    under.until_steps(both)
    run = Client().get_pipeline_run(under.run_id)
    assert asked(run) == ("running", both)
    zenml("refresh", run.id)
    assert Client().get_pipeline_run(run.id).status is ExecutionStatus.RUNNING
    zenml("stop", run.id, "--yes", *options)
    assert under.all_dead(60)
    assert eventually(lambda: flow_state(under), lambda state: state.is_final(), 60).is_cancelled()
    ran = under.join()
    assert (ran.status, ran.steps) == ("stopped", dict.fromkeys(both, "stopped"))
    assert ran.states == {"held": "Cancelled", "hangs": "Cancelled"}
    assert asked(run) == ("stopped", dict.fromkeys(both, "stopped"))


def flow_state(under: Under) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(under.flow_run_id).state


@pytest.mark.slow
def test_through_a_worker(lab: Lab, pool: str, dynamics: Any) -> None:
    ran = lab.run(dynamics.everything, lab.stack("modal", work_pool=pool))
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.flow_run.work_pool_name == pool
    assert ran.run.outputs["total"].load() == 5 + 2 + 2 + 11 + 100
    assert set(ran.states) == {
        "everything",
        "map:square:0",
        "map:square:1",
        "again",
        "again (attempt 2)",
        "shell",
        "pipeline:inner: apart",
    }
    assert asked(ran.run) == ("completed", ran.steps)


@pytest.mark.slow
def test_by_a_schedule(lab: Lab, pool: str, dynamics: Any) -> None:
    """Each run of the schedule is a ZenML run of its own, whose isolated step has its sandbox and its task run."""
    start = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(seconds=8)
    name = f"dynamic-{pool}"
    every = timedelta(seconds=20)
    # Three times: the first is over where submitting took longer than those seconds.
    times = {"start_time": start, "interval_second": every, "end_time": start + 2 * every}
    ran = lab.run(
        dynamics.inner,
        lab.stack("modal", work_pool=pool),
        options={"schedule": Schedule(name=name, **times)},
        begun=False,
        value=1,
    )
    assert ran.error is None
    (schedule,) = Client().list_schedules(name=name).items

    def ended() -> list[Any]:
        runs = Client().list_pipeline_runs(schedule_id=schedule.id, hydrate=True).items
        return [run for run in runs if run.status.is_finished]

    runs = eventually(ended, lambda found: len(found) >= 2, 200)
    Client().delete_schedule(schedule.id)
    assert len({run.orchestrator_run_id for run in runs}) >= 2
    for run in runs:
        again = lab.read(Ran(ran.folder), run.id)
        assert again.status == "completed"
        assert again.run.outputs["inner"].load() == 2
        assert again.states == {"inner": "Completed", "apart": "Completed"}
        assert lab.sandboxes_by_step(again) == {"": 1, "apart": 1}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["v2", "v1"])
def test_flow_and_sandbox_die(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The flow is killed and resumed, then the function's sandbox is evicted: an isolated step goes on."""
    use_backend(monkeypatch, backend)
    with Lives(lab, tmp_path) as lives:
        lives.begin("dynamic", "modal", {})
        lives.until("apart")
        lives.until("here")
        lives.until_logged("apart 1 before 39")
        lives.kill()
        lives.go_on()
        lives.until_signed()
        lab.modal.evict(lives.under.ran.traces("here")[0]["sandbox"])
        lives.until("here", 2)
        lives.go("here-2", "apart-1", "last-1")
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert {step: len(ran.traces(step)) for step in ("apart", "here", "last")} == {"apart": 1, "here": 2, "last": 1}
    assert ran.run.steps["here"].version == 2
    assert ran.states == {"dynamic": "Completed", "apart": "Completed"}
    lines = [line for line in lab.logs(ran.task_runs["apart"], 80) if line.startswith("apart 1")]
    assert len(lines) == len(set(lines)) == 80
    assert lab.sandboxes_by_step(ran) == {"": 2, "apart": 1}
    assert not lab.running(ran)


@pytest.mark.slow
def test_prefect_is_away_at_the_end_of_one_that_was_resumed(lab: Lab, tmp_path: Path) -> None:
    """For longer than Prefect's client asks again, a minute: its end doesn't hang on the task runs that are open."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("dynamic", "process", {})
        lives.until("apart")
        lives.until("here")
        lives.kill()
        lives.go_on()
        lives.go("here-1", "apart-1")
        lives.until("last")
        lives.until_logged("last 1 before 39")
        with gone(lab.prefect):
            lives.go("last-1")
            over = "dynamic | Finished in state Completed"
            assert eventually(lambda: over in lives.log, bool, 60), lives.log[-6000:]
            assert eventually(lambda: "waits for Prefect's API" in lives.log, bool, 100), lives.log[-6000:]
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert ran.states == {"dynamic": "Completed", "apart": "Completed"}
    assert {step: len(ran.traces(step)) for step in ("apart", "here", "last")} == {"apart": 1, "here": 1, "last": 1}


@pytest.mark.slow
def test_an_inline_step_that_asks_for_a_gpu(lab: Lab, dynamics: Any) -> None:
    ran = lab.run(dynamics.selfish, lab.stack("process"))
    assert ran.status == "failed"
    message = ran.flow_run.state.message
    assert "gpu of step one='T4'" in message
    assert '@step(runtime="isolated")' in message
    assert not ran.traces("one")
    assert not (ran.folder / "went on").exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_most_at_once(lab: Lab, dynamics: Any, place: str) -> None:
    ran = lab.run(dynamics.narrow, lab.stack(place), settings={"max_parallelism": 1})
    assert ran.status == "completed"
    in_turns(lab, ran, place)


def in_turns(lab: Lab, ran: Ran, place: str) -> None:
    """The isolated steps of ``narrow`` have run one after the other, and so have their sandboxes."""
    steps = [f"map:slow:{number}" for number in range(3)]
    turns = sorted([trace["time"] for what in ("begin", "end") for trace in ran.traces(step, what)] for step in steps)
    times = [time for turn in turns for time in turn]
    assert (len(times), times) == (6, sorted(times))
    boxes = sorted((box for box in lab.sandboxes(ran) if "zenml_step" in box.tags), key=lambda box: box.created_at)
    assert len(boxes) == (3 if place == "modal" else 0)
    for earlier, later in itertools.pairwise(boxes):
        assert earlier.created_at + earlier.seconds <= later.created_at

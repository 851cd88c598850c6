"""The sweep: runs and sandboxes that nobody owns are ended on all sides, everything else is let be."""

from __future__ import annotations

import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling
from zenml.client import Client

from tests.integration.flow_process import FlowProcess
from tests.integration.lab import Lab, eventually
from tests.integration.test_cli import call
from tests.integration.under import Under, cancel, living
from tests.integration.workers import make_pool
from tests.ports import free_port

PER_STEP = {"execution_mode": "per_step"}
DEAD = {
    "per_step": ("stoppable.held", PER_STEP, {"hangs": "running"}, {"again": "retrying"}),
    "dynamic": ("crashes.dynamic", {}, {"apart": "running"}, {"here": "running"}),
}
"""By mode: a pipeline, its settings, and what is under way in it; of which the second may be tried again."""


def sweep(stack: str, *more: str) -> subprocess.CompletedProcess[str]:
    return call("sweep", "--stack", stack, *more)


def line_of(shown: subprocess.CompletedProcess[str], run_id: UUID) -> str:
    """What the sweep says of a run; "" if it says nothing."""
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return next((line for line in shown.stdout.splitlines() if str(run_id) in line), "")


def make_old(run_id: UUID) -> None:
    """Let the last sign of life of a dead flow be of yesterday: nobody waits for its time here."""
    from zenml.enums import MetadataResourceTypes
    from zenml.models import RunMetadataResource

    from bridge.names import METADATA_FLOW_ALIVE

    resource = RunMetadataResource(id=run_id, type=MetadataResourceTypes.PIPELINE_RUN)
    Client().create_run_metadata({METADATA_FLOW_ALIVE: "2020-01-01T00:00:00.000+00:00"}, [resource])


@pytest.mark.slow
@pytest.mark.timeout(600)  # four calls of the command, each a process
@pytest.mark.parametrize(
    ("place", "mode"),
    [("modal", "per_step"), ("process", "per_step"), ("modal", "dynamic"), ("process", "dynamic")],
)
def test_what_nobody_owns_is_ended_and_nothing_else(lab: Lab, tmp_path: Path, place: str, mode: str) -> None:
    """In ``dynamic`` one step runs in the sandbox of the function, and one in its own."""
    import stoppable

    stack = lab.stack(place, warm_idle_timeout=61)  # a stack of its own
    pipeline, settings, hangs, again = DEAD[mode]
    with FlowProcess(lab, tmp_path / "dead", stack, pipeline, settings) as flow:
        dead = flow.under.until_steps({**hangs, **again})
    dead_id = dead.run_id
    live = Under(lab, tmp_path / "live")
    live.start(stoppable.held, place, PER_STEP, stack=stack)
    live.until_steps({"hangs": "running", "again": "retrying"})

    shown = sweep(stack)
    assert (line_of(shown, dead_id), line_of(shown, live.run_id)) == ("", ""), shown.stdout
    assert "2 runs with a flow" in shown.stdout

    make_old(dead_id)
    shown = sweep(stack)
    assert "nobody's: its flow gave its last sign of life" in line_of(shown, dead_id)
    assert "Nothing was changed" in shown.stdout
    (step,), (other,) = hangs, again
    assert f"of step {step}" in shown.stdout or "sandbox sb-" in shown.stdout
    assert any(living(pid) for pid in dead.pids())
    assert Client().get_pipeline_run(dead_id).status.value == "running"

    shown = sweep(stack, "--yes")
    assert "ended" in line_of(shown, dead_id)
    assert dead.all_dead()
    ran = dead.join()
    assert ran.status == "failed"
    assert "The flow of this run is gone" in ran.run.exception_info.traceback
    assert ran.flow_run.state.name == "Failed"
    # ZenML's own runner of a dynamic pipeline may see its run fail, and stop its steps before they end.
    ends = {"failed": "Failed", **({"stopped": "Cancelled"} if mode == "dynamic" else {})}
    assert ran.states[step] == ends[ran.steps[step]]
    assert ran.steps[other] in ("failed", "stopped")
    assert not lab.running(ran)

    assert line_of(shown, live.run_id) == ""
    assert any(living(pid) for pid in live.pids())
    assert Client().get_pipeline_run(live.run_id).status.value == "running"
    cancel(live.flow_run_id)
    assert live.join().status == "stopped"
    assert line_of(sweep(stack, "--yes"), dead_id) == ""


@pytest.mark.slow
def test_a_flow_that_was_cancelled_and_died_then(lab: Lab, tmp_path: Path) -> None:
    """Prefect says Crashed, as the watchdog does: that it was cancelled is in the history alone. It is stopped."""
    from prefect.states import Crashed

    stack = lab.stack("process", warm_idle_timeout=62)  # a stack of its own
    with FlowProcess(lab, tmp_path, stack, "stoppable.held", PER_STEP) as flow:
        under = flow.under.until_steps({"hangs": "running", "again": "retrying"})
    cancel(under.flow_run_id)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(under.flow_run_id, Crashed(), force=True)
    assert line_of(sweep(stack, "--yes"), under.run_id) == "", "it may come back"
    make_old(under.run_id)
    shown = line_of(sweep(stack, "--yes"), under.run_id)
    assert "its flow run is crashed, after it was cancelled" in shown
    assert "ended" in shown
    assert under.all_dead()
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped", "again": "stopped"}
    for why in (reason(ran.run), ran.flow_run.state.message):
        assert "ts flow gave its last sign of life" in why
        assert "its flow run is crashed, after it was cancelled" in why


def submitted(lab: Lab, stack: str) -> Any:
    import shapes

    ran = lab.run(shapes.chain, stack, settings={"execution_mode": "pipeline"}, begun=False)
    assert ran.error is None
    return ran.run


@pytest.fixture(scope="module")
def idle(lab: Lab) -> str:
    """A stack whose work pool has no worker."""
    pool = f"idle-{uuid4().hex[:6]}"
    make_pool(pool)
    return lab.stack("process", work_pool=pool, synchronous=False)


def status(run: Any) -> str:
    return str(Client().get_pipeline_run(run.id).status.value)


def reason(run: Any) -> str:
    """What ZenML shows beside the status of a run."""
    return str(Client().get_pipeline_run(run.id).get_body().status_reason)


@pytest.mark.slow  # test_status.py has the states of such runs
def test_a_flow_that_was_cancelled_or_deleted_before_it_began(lab: Lab, idle: str) -> None:
    """One waits for a worker, one was cancelled meanwhile, one was deleted, one crashed in the worker's hands, and one
    was being stopped in ZenML when it was cancelled."""
    from prefect.states import Crashed
    from zenml.enums import ExecutionStatus
    from zenml.orchestrators.publish_utils import publish_pipeline_run_status_update

    waiting, cancelled, deleted, crashed, stopping = (submitted(lab, idle) for _ in range(5))
    publish_pipeline_run_status_update(stopping.id, ExecutionStatus.STOPPING, status_reason="by a person")
    with get_client(sync_client=True) as client:
        for run in (cancelled, stopping):
            client.set_flow_run_state(UUID(run.orchestrator_run_id), Cancelling())
        client.delete_flow_run(UUID(deleted.orchestrator_run_id))
        client.set_flow_run_state(UUID(crashed.orchestrator_run_id), Crashed(message="no such image"), force=True)
    shown = sweep(idle, "--yes")
    assert "cancelled before it began" in line_of(shown, cancelled.id)
    assert "left alone: Prefect doesn't know its flow run" in line_of(shown, deleted.id)
    assert "crashed before it began" in line_of(shown, crashed.id)
    assert line_of(shown, waiting.id) == ""
    assert [status(run) for run in (waiting, cancelled, crashed)] == ["provisioning", "stopped", "failed"]
    assert status(stopping) == "stopped"
    assert reason(cancelled) == "The flow of this run is gone. Its flow run was cancelled before it began."
    assert reason(stopping) == "by a person", "it was over with that, since no step of it had begun"
    assert status(deleted) == "provisioning"


def test_the_children_of_a_run_that_nobody_works_on(lab: Lab, idle: str) -> None:
    """They fail with it: ZenML has their end from nobody else. What has ended stays as it is."""
    import dynamics
    from prefect.states import Crashed
    from zenml.enums import ExecutionStatus
    from zenml.orchestrators.publish_utils import publish_pipeline_run_status_update
    from zenml.pipelines.run_utils import create_placeholder_run

    run = lab.run(dynamics.inner, idle, begun=False, value=1).run

    def child(key: str, ends: ExecutionStatus) -> Any:
        called = dynamics.inner.with_options(parameters={"folder": "/nowhere", "value": 2})
        snapshot = called.create_snapshot(name=f"{key}-{uuid4().hex[:6]}")
        made = create_placeholder_run(
            snapshot, orchestrator_run_id=run.orchestrator_run_id, parent_run_id=run.id, child_key=key
        )
        publish_pipeline_run_status_update(made.id, ends)
        return made

    running, completed = child("runs", ExecutionStatus.RUNNING), child("ended", ExecutionStatus.COMPLETED)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run.orchestrator_run_id), Crashed(message="no such image"), force=True)
    code, text = said("sweep", "--stack", idle, "--yes")
    assert code == 0, text
    assert [status(one) for one in (run, running, completed)] == ["failed", "failed", "completed"]
    assert "The flow of this run is gone" in Client().get_pipeline_run(running.id).exception_info.traceback


def said(*arguments: str) -> tuple[int, str]:
    """The exit code and the words of our command, in this process: a start of it takes seconds."""
    from click.testing import CliRunner

    from bridge.cli import main

    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.output


def test_a_prefect_that_can_t_be_asked(lab: Lab) -> None:
    away = lab.stack("process", prefect_api_url=f"http://127.0.0.1:{free_port()}/api")
    code, text = said("sweep", "--stack", away, "--yes")
    assert (code, "Prefect's API at http://127.0.0.1" in text) == (1, True), text


def test_bad_requests(lab: Lab, idle: str) -> None:
    """Each error comes before anything is done."""
    assert said("sweep", "--stack", "no-such-stack")[0] == 1
    assert "there is no such stack" in said("sweep", "--stack", "no-such-stack")[1]
    assert said("sweep", "--stack", idle, "--all")[0] == 2
    assert (
        "neither an orchestrator nor a step operator of flavour `modal-prefect`"
        in said("sweep", "--stack", "default")[1]
    )
    code, text = said("watchdog", "--stack", idle, "--after", "60")
    assert (code, "a flow says every 180 s that it lives" in text) == (1, True)


def test_all_stacks_are_looked_at(lab: Lab, idle: str) -> None:
    """With `--all`, and without it the active one alone, which is another one here."""
    run = submitted(lab, idle)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run.orchestrator_run_id), Cancelling())
    lab.activate(lab.stack("process"))
    assert str(run.id) not in said("sweep")[1]
    assert f"({run.id}): nobody's" in said("sweep", "--all")[1]
    assert status(run) == "provisioning"


def test_the_flow_that_sweeps_all_stacks(lab: Lab, idle: str) -> None:
    """Called in this process, as a worker would."""
    from bridge.sweep_flow import sweep_stacks

    run = submitted(lab, idle)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run.orchestrator_run_id), Cancelling())
    state = sweep_stacks(return_state=True)
    assert status(run) == "stopped"
    assert "Ended" in (state.message or "")
    listed = sweep_stacks(stack=idle, end=False, return_state=True)
    assert (listed.name, listed.message) == ("Completed", "Ended 0 runs, left 0 that nobody owns.")


def deploy_the_sweep(client: SyncPrefectClient) -> UUID:
    from bridge import names
    from bridge.sweep_flow import sweep_stacks

    flow_id = client.create_flow(sweep_stacks)
    entrypoint = "bridge.sweep_flow.sweep_stacks"
    return client.create_deployment(flow_id, names.SWEEP, entrypoint=entrypoint, pull_steps=[])


def test_the_watchdog_s_automations(lab: Lab, idle: str) -> None:
    """Made once, changed where asked, taken away; with the sweep deployed there is one that runs it."""
    from bridge import names
    from bridge.cleanup import watchdog

    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            if deployment.name == names.SWEEP:  # another test's
                client.delete_deployment(deployment.id)
    shown = call("watchdog", "--stack", idle)
    assert f"{names.AUTOMATION_CRASH}: made" in shown.stdout, shown.stderr
    assert "modal-prefect sweep --yes" in shown.stdout
    with get_client(sync_client=True) as client:

        def set_up(after: int) -> list[str]:
            return [done.what for done in watchdog.set_up(client, after, 1800)]

        assert set_up(600) == ["kept"]
        assert set_up(700) == ["changed"]
        (automation,) = client.read_automations_by_name(names.AUTOMATION_CRASH)
        client.pause_automation(automation.id)
        assert set_up(700) == ["changed"]
        deploy_the_sweep(client)
        assert set_up(700) == ["kept", "made"]
        assert set_up(700) == ["kept", "kept"]
        assert [done.what for done in watchdog.take_away(client)] == ["removed", "removed"]
        assert watchdog.take_away(client) == []


def test_prefect_runs_the_sweep_once_no_flow_can_come_back(lab: Lab) -> None:
    """For a crashed flow run of ours, and for none of another's."""
    from prefect.states import Crashed, Running

    from bridge.cleanup import watchdog

    with get_client(sync_client=True) as client:
        deployment_id = deploy_the_sweep(client)
        watchdog.set_up(client, 600, 1800)

        def crash(tag: str) -> datetime:
            flow_run = client.create_flow_run(flow(lambda: None, name=f"crashes-{tag}"), tags=[tag], state=Running())
            client.set_flow_run_state(flow_run.id, Crashed(), force=True)
            return client.read_flow_run(flow_run.id).end_time

        def seen() -> int:
            of_another = {"event": {"name": ["prefect.flow-run.Crashed"]}, "related": {"id": ["prefect.tag.other"]}}
            answer = client.request("POST", "/events/filter", json={"filter": of_another})
            return int(answer.json()["total"])

        def sweeps() -> list[FlowRun]:
            of_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
            return client.read_flow_runs(deployment_filter=of_it)

        crash("other")
        assert eventually(seen, bool, 60) == 1
        crashed_at = crash("zenml")
        (scheduled,) = eventually(sweeps, bool, 60)
        assert scheduled.state.is_scheduled()
        waits = (scheduled.state.state_details.scheduled_time - crashed_at).total_seconds()
        assert 1800 * 1.25 + 120 <= waits < 1800 * 1.25 + 180
        watchdog.take_away(client)
        client.delete_deployment(deployment_id)


@pytest.mark.slow
def test_the_watchdog_sees_a_flow_die_and_not_one_that_lives(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's shortest heartbeat is 30 s."""
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    stack = lab.stack("process")
    shown = call("watchdog", "--stack", stack, "--after", "60")
    assert shown.returncode == 0, shown.stderr
    with FlowProcess(lab, tmp_path / "live", stack, "stoppable.held", PER_STEP) as live:
        live.under.until_steps({"hangs": "running", "again": "retrying"})
        with FlowProcess(lab, tmp_path / "dead", stack, "stoppable.held", PER_STEP) as dead:
            dead.under.until_steps({"hangs": "running", "again": "retrying"})

        def state(flow: FlowProcess) -> Any:
            with get_client(sync_client=True) as client:
                return client.read_flow_run(flow.under.flow_run_id).state

        found = eventually(lambda: state(dead), lambda state: state.is_crashed(), 120)
        assert found.is_crashed()
        assert "no sign of life for 60 s" in found.message
        assert state(live).is_running()
        assert Client().get_pipeline_run(dead.under.run_id).status.value == "running"
        cancel(live.under.flow_run_id)
        assert live.under.join().status == "stopped"
    call("watchdog", "--stack", stack, "--remove")
    make_old(dead.under.run_id)
    assert "ended" in line_of(sweep(stack, "--yes"), dead.under.run_id)
    assert dead.under.join().status == "failed"

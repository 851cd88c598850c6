"""`refresh` and `stop` from ZenML, for flows that a worker runs, that nobody runs, and that are gone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest

from bridge.flow_run import eviction
from tests.integration.lab import Lab, asked, eventually
from tests.integration.workers import make_pool
from tests.servers import Server

PIPELINE_MODE = {"execution_mode": "pipeline"}


@pytest.fixture(scope="module")
def idle_pool(lab: Lab) -> str:
    name = f"idle-{uuid4().hex[:6]}"
    make_pool(name)
    return name


def client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def submitted(lab: Lab, pool: str, pipeline: Any, folder: Path | None = None, **settings: Any) -> Any:
    """Submit without waiting; return the ZenML run."""
    stack = lab.stack("process", work_pool=pool, synchronous=False)
    ran = lab.run(pipeline, stack, settings={**PIPELINE_MODE, **settings}, into=folder, begun=False)
    assert ran.error is None
    return ran.run


def zenml_run(run: Any) -> Any:
    from zenml.client import Client

    return Client().get_pipeline_run(run.id)


def flow_run(run: Any) -> Any:
    with client() as api:
        return api.read_flow_run(UUID(run.orchestrator_run_id))


def statuses(run: Any) -> tuple[str, dict[str, str]]:
    run = zenml_run(run)
    return run.status.value, {name: step.status.value for name, step in run.steps.items()}


def refresh(run: Any) -> tuple[str, dict[str, str]]:
    """`zenml pipeline runs refresh`."""
    from zenml.utils.run_utils import refresh_run_status

    refresh_run_status(zenml_run(run), include_step_updates=True)
    return statuses(run)


def stop(run: Any, graceful: bool = False) -> None:
    """`zenml pipeline runs stop`."""
    from zenml.utils.run_utils import stop_run

    stop_run(zenml_run(run), graceful=graceful)


def set_state(run: Any, state: Any, force: bool = False) -> None:
    with client() as api:
        api.set_flow_run_state(UUID(run.orchestrator_run_id), state, force=force)


def under_way(run: Any, folder: Path, step: str = "hung") -> None:
    """Wait until the step's own code runs."""
    assert eventually(lambda: (folder / f"{step}.jsonl").exists(), bool, 90), flow_run(run).state


def pids(folder: Path) -> set[int]:
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return {line["pid"] for line in lines}


def alive(folder: Path) -> set[int]:
    """The processes of the run's steps that are still there."""
    return {pid for pid in pids(folder) if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"}


@pytest.mark.slow  # as in test_stopping.py, but for the worker
def test_a_live_run_and_its_forced_stop(lab: Lab, pool: str, tmp_path: Path) -> None:
    import shapes

    run = submitted(lab, pool, shapes.telling, tmp_path)
    assert asked(run) == ("provisioning", {})
    under_way(run, tmp_path)
    assert asked(run) == ("running", {"hung": "running"})
    assert refresh(run) == ("running", {"hung": "running"})
    stop(run)
    assert eventually(lambda: alive(tmp_path), lambda found: not found, 10) == set()
    assert eventually(lambda: statuses(run), lambda found: found[0] == "stopped") == ("stopped", {"hung": "stopped"})
    state = eventually(lambda: flow_run(run).state, lambda state: state.is_final(), 30)
    assert state.is_cancelled()
    assert asked(run) == ("stopped", {"hung": "stopped"})


@pytest.mark.slow  # as in test_stopping.py, but for the worker
def test_a_graceful_stop_is_left_to_the_flow(lab: Lab, pool: str, tmp_path: Path) -> None:
    import shapes

    run = submitted(lab, pool, shapes.telling, tmp_path)
    under_way(run, tmp_path)
    stop(run, graceful=True)
    assert not flow_run(run).state.is_cancelling()
    assert eventually(lambda: statuses(run), lambda found: found[0] == "stopped", 60) == (
        "stopped",
        {"hung": "stopped"},
    )
    assert eventually(lambda: flow_run(run).state, lambda state: state.is_final(), 30).is_cancelled()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["evicted", "killed"])
@pytest.mark.slow
def test_a_crashed_run_stays_running_until_it_is_stopped(
    lab: Lab, pool: str, tmp_path: Path, how: signal.Signals
) -> None:
    """The flow's process is evicted or killed, its sandbox lives on: stopping ends that too."""
    import shapes

    variables = {"env": {eviction.VARIABLE: "crash"}} if how is signal.SIGTERM else {}
    run = submitted(lab, pool, shapes.telling, tmp_path, job_variables=variables)
    under_way(run, tmp_path)
    end_flow(run, how)
    assert eventually(lambda: flow_run(run).state, lambda state: state.is_final(), 30).is_crashed()
    assert asked(run) == ("running", {"hung": "running"})
    assert refresh(run) == ("running", {"hung": "running"})
    assert alive(tmp_path)
    stop(run)
    assert not alive(tmp_path)
    assert statuses(run) == ("stopped", {"hung": "stopped"})
    assert flow_run(run).state.is_cancelled()


def end_flow(run: Any, how: signal.Signals) -> None:
    """A signal to the process in which the worker runs the flow."""
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("PREFECT__FLOW_RUN_ID") == run.orchestrator_run_id
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if mine and "prefect" in " ".join(process.cmdline()) and "host" not in process.cmdline():
            os.kill(process.pid, how)
            return
    raise AssertionError("no process of the flow")


def test_cancelled_before_a_worker_saw_it(lab: Lab, idle_pool: str) -> None:
    import shapes
    from prefect.states import Cancelling

    run = submitted(lab, idle_pool, shapes.chain)
    set_state(run, Cancelling())
    assert asked(run)[0] == "stopping"
    assert refresh(run) == ("stopped", {})


@pytest.mark.parametrize("graceful", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stopped_before_a_worker_saw_it(lab: Lab, idle_pool: str, graceful: bool) -> None:
    import shapes

    run = submitted(lab, idle_pool, shapes.chain)
    stop(run, graceful)
    assert statuses(run) == ("stopped", {})
    assert flow_run(run).state.is_cancelled()


def test_a_deleted_flow_run(lab: Lab, idle_pool: str) -> None:
    import shapes

    run = submitted(lab, idle_pool, shapes.chain)
    with client() as api:
        api.delete_flow_run(UUID(run.orchestrator_run_id))
    assert asked(run)[0] == "stopping"
    stop(run)
    assert statuses(run) == ("stopped", {})


def submitted_apart(lab: Lab, pool: str) -> Any:
    """The same, on an orchestrator that no other test has."""
    import shapes

    stack = lab.stack("process", work_pool=pool, synchronous=False, tags={"apart": uuid4().hex})
    return lab.run(shapes.chain, stack, settings=PIPELINE_MODE, begun=False).run


def asks(server: Server, run: Any) -> None:
    """From now on the run's orchestrator asks this Prefect."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    [orchestrator] = zenml_run(run).stack.components[StackComponentType.ORCHESTRATOR]
    url = {"prefect_api_url": f"{server.url}/api"}
    Client().update_stack_component(orchestrator.id, StackComponentType.ORCHESTRATOR, configuration=url)


def test_another_prefect_knows_nothing_of_a_run(
    lab: Lab, idle_pool: str, other_prefect: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Refreshing a run there changes nothing of it, and stopping it gracefully is left to its flow."""
    from bridge.cleanup import signs_of_life
    from bridge.errors import PrefectUnavailable

    run = submitted_apart(lab, idle_pool)
    asks(other_prefect, run)
    with pytest.raises(PrefectUnavailable, match=rf"{other_prefect.url}.*made as .*/runs/flow-run/.*config view"):
        refresh(run)
    assert statuses(run) == ("provisioning", {})
    signs_of_life.renew(zenml_run(run))  # as the flow does, once a worker elsewhere has begun it
    with pytest.raises(PrefectUnavailable, match=rf"{other_prefect.url}.*sign of life \d s ago.*config view"):
        refresh(run)
    assert statuses(run) == ("provisioning", {})
    with caplog.at_level("WARNING", "bridge.submitting.stop_run"):
        stop(run, graceful=True)
    assert "The run is left to its flow" in caplog.text
    assert statuses(run) == ("stopped", {}), "which is what ZenML makes of stopping without a step"


def test_a_run_is_stopped_wherever_its_flow_run_is(lab: Lab, idle_pool: str, other_prefect: Server) -> None:
    from bridge.cleanup import signs_of_life

    run = submitted_apart(lab, idle_pool)
    asks(other_prefect, run)
    signs_of_life.renew(zenml_run(run))
    stop(run)
    assert statuses(run) == ("stopped", {})


def test_a_flow_run_that_was_deleted_while_its_flow_gave_signs_of_life(lab: Lab, idle_pool: str) -> None:
    """Where the Prefect that had it says so, the flow has no say."""
    import shapes

    from bridge.cleanup import signs_of_life

    run = submitted(lab, idle_pool, shapes.chain)
    signs_of_life.renew(zenml_run(run))
    with client() as api:
        api.delete_flow_run(UUID(run.orchestrator_run_id))
    assert refresh(run) == ("stopped", {})


def test_a_failed_flow_run_whose_zenml_run_never_began(lab: Lab, idle_pool: str) -> None:
    import shapes
    from prefect.states import Failed

    run = submitted(lab, idle_pool, shapes.chain)
    set_state(run, Failed(message="the worker couldn't"), force=True)
    assert refresh(run) == ("failed", {})


def test_prefect_that_does_not_answer_is_no_answer(lab: Lab, idle_pool: str) -> None:
    import shapes
    from zenml.client import Client
    from zenml.enums import StackComponentType

    from bridge.errors import PrefectUnavailable

    stack = lab.stack("process", work_pool=idle_pool, synchronous=False, tags={"test": "away"})
    run = lab.run(shapes.chain, stack, begun=False).run
    nowhere = {"prefect_api_url": "http://127.0.0.1:9/api"}
    Client().update_stack_component(stack, StackComponentType.ORCHESTRATOR, configuration=nowhere)
    with pytest.raises(PrefectUnavailable, match=r"127\.0\.0\.1:9"):
        asked(run)
    assert statuses(run)[0] == "provisioning"

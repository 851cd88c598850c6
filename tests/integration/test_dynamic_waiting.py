"""A dynamic pipeline waits for an answer: through a worker, and where the answer comes while it still asks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from zenml.client import Client
from zenml.enums import ExecutionStatus, RunWaitConditionResolution
from zenml.models import PipelineRunUpdate

from tests.integration.lab import PROJECT, Lab, Ran, eventually
from tests.integration.test_dynamic import hooks, told, zenml


@pytest.fixture
def dynamics(lab: Lab) -> Any:
    import dynamics

    return dynamics


def flow_run_of(ran: Ran) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(ran.flow_run.id)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_paused_and_resumed_through_a_worker(
    lab: Lab, pool: str, dynamics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The worker's process ends while it is paused; the same flow run goes on in another one."""
    monkeypatch.chdir(PROJECT)  # where ZenML's commands look for the code
    (tmp_path / "go").touch()
    ran = lab.run(dynamics.asking, lab.stack(place, work_pool=pool), into=tmp_path)
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("paused", "Suspended")
    assert ran.states == {"asking": "Paused", "apart": "Completed"}
    assert ran.flow_run.work_pool_name == pool
    condition = ran.run.active_wait_condition
    Client().resolve_run_wait_condition(condition.id, RunWaitConditionResolution.CONTINUE, result=41)
    zenml("resume", ran.run.id)
    eventually(lambda: flow_run_of(ran).state, lambda state: state.is_final(), 120)
    again = lab.read(Ran(ran.folder), ran.run.id)
    assert (again.status, again.flow_run.state.name) == ("completed", "Completed")
    assert (again.flow_run.id, again.flow_run.run_count) == (ran.flow_run.id, 2)
    assert again.states == {"asking": "Completed", "apart": "Completed"}
    assert [len(again.traces(step)) for step in ("one", "apart")] == [1, 1]
    assert again.run.steps["add"].output.load() == 2 + 41
    if place == "modal":
        assert lab.sandboxes_by_step(again) == {"": 2, "apart": 1}


def answered(
    lab: Lab, dynamics: Any, stack: str, folder: Path, resolution: RunWaitConditionResolution
) -> tuple[Ran, dict[str, Any]]:
    """A run whose question is answered while it still asks, and what there is of it without ids and times."""
    known = {condition.id for condition in Client().list_run_wait_conditions().items}

    def answer() -> None:
        def new() -> list[Any]:
            return [one for one in Client().list_run_wait_conditions().items if one.id not in known]

        (condition,) = eventually(new, bool, 150)
        result = 41 if resolution is RunWaitConditionResolution.CONTINUE else None
        Client().resolve_run_wait_condition(condition.id, resolution, result=result)

    answering = threading.Thread(target=answer, daemon=True)
    answering.start()
    options = told(dynamics, folder)
    ran = lab.run(dynamics.asking_briefly, stack, into=folder, options=options)
    answering.join()
    values = {name: step.output.load() for name, step in ran.run.steps.items()}
    return ran, {"status": ran.status, "steps": ran.steps, "values": values, "hooks": hooks(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
@pytest.mark.parametrize("resolution", list(RunWaitConditionResolution))
def test_answered_while_it_asks(
    lab: Lab, dynamics: Any, tmp_path: Path, place: str, resolution: RunWaitConditionResolution
) -> None:
    """It goes on at once, or was stopped, as with ZenML's local orchestrator; it was never paused."""
    goes_on = resolution is RunWaitConditionResolution.CONTINUE
    _, expected = answered(lab, dynamics, "default", tmp_path / "local", resolution)
    assert (expected["status"], expected["values"]) == (
        ("completed", {"one": 1, "add": 1 + 41}) if goes_on else ("stopped", {})
    )
    ran, found = answered(lab, dynamics, lab.stack(place), tmp_path / "ours", resolution)
    assert found == expected
    assert ran.flow_run.state.name == ("Completed" if goes_on else "Cancelled")
    assert ran.states == {"asking_briefly": "Completed" if goes_on else "Cancelled"}
    assert ran.flow_run.run_count == 1


@pytest.mark.slow
def test_resumed_before_its_flow_knows_that_it_paused(
    lab: Lab, dynamics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one is refused, as its flow is still at work; the next one goes on."""
    monkeypatch.chdir(PROJECT)  # where ZenML's commands look for the code
    (tmp_path / "go").touch()
    options = {"on_pause": dynamics.somebody_resumes_it}
    ran = lab.run(dynamics.asking, lab.stack("process"), into=tmp_path, options=options)
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("resuming", "Paused")
    Client().zen_store.update_run(ran.run.id, PipelineRunUpdate(status=ExecutionStatus.PAUSED))
    condition = ran.run.active_wait_condition
    Client().resolve_run_wait_condition(condition.id, RunWaitConditionResolution.CONTINUE, result=41)
    zenml("resume", ran.run.id)
    again = lab.read(Ran(ran.folder), ran.run.id)
    assert (again.status, again.flow_run.state.name) == ("completed", "Completed")
    assert [len(again.traces(step)) for step in ("one", "apart")] == [1, 1]

"""What becomes of a run between two looks of the sweep, and before it: it came back, or was deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from zenml.client import Client

from bridge.cleanup import signs_of_life
from bridge.cleanup.ownership import Owner
from bridge.cleanup.sweep import stacks, sweep
from bridge.cleanup.swept import Report
from tests.integration.forwarder import Forwarder
from tests.integration.lab import Lab
from tests.integration.test_sweep import make_old, status, submitted
from tests.integration.test_sweep_operators import left_on_modal
from tests.integration.workers import make_pool


@pytest.fixture
def stack(lab: Lab) -> str:
    """A stack of its own, whose work pool has no worker: what is submitted stays where it is."""
    pool = f"idle-{uuid4().hex[:6]}"
    make_pool(pool)
    return lab.stack("modal", work_pool=pool, synchronous=False)


def put_into(run: Any, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run.orchestrator_run_id), state, force=True)


def state_of(run: Any) -> str | None:
    """The name of the state in which its flow run is."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run.orchestrator_run_id)).state
    return state.name if state is not None else None


def swept(stack: str, *, end: bool = True) -> Report:
    (found,) = stacks(stack)
    return sweep(found, end=end)


@contextmanager
def after_the_first_look(lab: Lab, at: Any, happens: Callable[[], None]) -> Iterator[None]:
    """Let something happen once the sweep has judged a run to be nobody's: then it asks how its flow run got there."""
    waiting = [happens]

    def before(method: str, path: str) -> None:
        if "flow_run_states" in path and at.orchestrator_run_id in path and waiting:
            waiting.pop()()

    with (
        Forwarder(lab.prefect.url, before=before) as forwarder,
        temporary_settings({PREFECT_API_URL: f"{forwarder.url}/api"}),
    ):
        yield
    assert not waiting, "it never came to that"


def test_a_flow_that_comes_back_meanwhile_keeps_its_run(lab: Lab, stack: str) -> None:
    """Before anything is ended it is looked at once more; once the flow is gone for long, the run is ended."""
    run, other = submitted(lab, stack), submitted(lab, stack)
    for each in (run, other):
        put_into(each, Crashed(message="no such image"))
    box = left_on_modal(lab.modal.token, stack, run, None)
    with after_the_first_look(lab, run, lambda: signs_of_life.renew(run)):
        report = swept(stack)
    (said,) = report.problems
    assert said.startswith(f"run {run.name}: left alone after all: its flow gave its last sign of life")
    assert report.ended == {other.id}
    assert (status(run), status(other)) == ("provisioning", "failed")
    assert state_of(run) == "Crashed"
    assert lab.modal.sandbox(box).status == "running"
    make_old(run.id)
    report = swept(stack)
    assert (report.problems, report.ended) == ([], {run.id})
    assert (status(run), state_of(run)) == ("failed", "Failed")
    assert lab.modal.sandbox(box).status == "terminated"


def test_a_run_that_is_deleted_meanwhile_ends_nobody_else_s_sweep(lab: Lab, stack: str) -> None:
    """Its sandbox ends all the same, and so do the runs that come after it."""
    run, other = submitted(lab, stack), submitted(lab, stack)
    for each in (run, other):
        put_into(each, Crashed(message="no such image"))
    box = left_on_modal(lab.modal.token, stack, run, None)
    with after_the_first_look(lab, run, lambda: Client().delete_pipeline_run(run.id)):
        report = swept(stack)
    assert (report.problems, report.ended) == ([], {run.id, other.id})
    assert status(other) == "failed"
    assert lab.modal.sandbox(box).status == "terminated"
    assert state_of(run) == "Cancelled"


def test_what_a_run_left_that_was_deleted(lab: Lab, stack: str) -> None:
    """Only once its flow run is over, too: until then a process may be at work on it."""
    run = submitted(lab, stack)
    box = left_on_modal(lab.modal.token, stack, run, None)
    Client().delete_pipeline_run(run.id)
    report = swept(stack)
    assert (report.problems, report.ended) == ([], set())
    (left,) = report.of(Owner.UNCLEAR)
    assert left.judgement.why == "it was deleted in ZenML, and its flow run is Scheduled"
    assert f"run {run.id} (deleted in ZenML)" in "\n".join(report.lines())
    assert lab.modal.sandbox(box).status == "running"
    with get_client(sync_client=True) as client:
        client.delete_flow_run(UUID(run.orchestrator_run_id))
    (left,) = swept(stack).of(Owner.UNCLEAR)
    assert left.judgement.why == "it was deleted in ZenML, and its flow run isn't known to Prefect"
    assert lab.modal.sandbox(box).status == "running"


def test_what_a_run_left_that_was_deleted_after_its_flow_run_had_ended(lab: Lab, stack: str) -> None:
    run = submitted(lab, stack)
    box = left_on_modal(lab.modal.token, stack, run, None)
    Client().delete_pipeline_run(run.id)
    put_into(run, Crashed(message="no such image"))
    report = swept(stack)
    assert (report.problems, report.ended) == ([], {run.id})
    assert lab.modal.sandbox(box).status == "terminated"
    assert state_of(run) == "Cancelled"

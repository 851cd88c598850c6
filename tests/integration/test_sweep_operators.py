"""The sweep of a stack of ours in which a step operator has its sandboxes somewhere else than the orchestrator."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling
from zenml.client import Client
from zenml.enums import StackComponentType

from tests.integration.beside import with_operators
from tests.integration.lab import IMAGE, Lab
from tests.integration.refusals import names_all
from tests.integration.workers import make_pool
from tests.loopback import LoopbackImage, LoopbackModal


@pytest.fixture(scope="module")
def pool() -> str:
    """One that no worker works on: what is submitted stays where it is."""
    name = f"idle-{uuid4().hex[:6]}"
    make_pool(name)
    return name


def cancelled(lab: Lab, stack: str) -> Any:
    """A run that nobody owns: its flow run was cancelled before it began."""
    import shapes

    ran = lab.run(shapes.chain, stack, settings={"execution_mode": "pipeline"}, begun=False)
    assert ran.error is None
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(ran.run.orchestrator_run_id), Cancelling())
    return ran.run


def left_on_modal(
    token: tuple[str, str], stack: str, run: Any, operator: str | None, modal_environment: str | None = None
) -> str:
    """The sandbox of a step whose flow was killed or, with ``operator``, of a command step whose caller was."""
    from bridge import names
    from bridge.components import Place
    from bridge.plan import SandboxSpec
    from bridge.runners.base import SandboxRequest

    tags = {
        names.TAG_SERVER: str(Client().zen_store.get_store_info().id),
        names.TAG_STACK: stack,
        names.TAG_RUN_ID: str(run.id),
        names.TAG_FLOW_RUN_ID: run.orchestrator_run_id,
        names.TAG_STEP: "train",
        **({names.TAG_STEP_OPERATOR: operator} if operator is not None else {}),
    }
    spec = SandboxSpec(IMAGE, modal_environment=modal_environment)
    request = SandboxRequest(f"left-{uuid4().hex}", "zenml-chain", ("sleep", "600"), spec, tags=tags)

    async def start() -> str:
        async with Place("modal", *token).runner_for() as runner:
            return (await runner.start(request)).id

    return asyncio.run(start())


def token_of(lab: Lab) -> dict[str, str]:
    return dict(zip(("token_id", "token_secret"), lab.modal.token, strict=True))


def change(operator: str, **configuration: str) -> None:
    Client().update_stack_component(operator, StackComponentType.STEP_OPERATOR, configuration=configuration)


def status(run: Any) -> str:
    return str(Client().get_pipeline_run(run.id).status.value)


def test_a_step_operator_on_modal_beside_local_processes(lab: Lab, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another runner, and an account that only the step operator knows."""
    from bridge.cleanup.sweep import stacks, sweep

    ours = lab.stack("process", work_pool=pool, synchronous=False)
    name, (operator,) = with_operators(ours, {"runner": "modal", **token_of(lab)})
    run = cancelled(lab, name)
    box = left_on_modal(lab.modal.token, name, run, operator)
    monkeypatch.delenv("MODAL_TOKEN_ID")
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    (stack,) = stacks(name)
    report = sweep(stack, end=False)
    assert not report.problems
    names_all("\n".join(report.lines()), "cancelled before it began", f"sandbox {box} of step train")
    assert lab.modal.sandbox(box).status == "running"
    report = sweep(stack, end=True)
    assert (report.problems, report.ended) == ([], {run.id})
    assert lab.modal.sandbox(box).status == "terminated"
    assert status(run) == "stopped"


def test_a_step_operator_that_cannot_be_asked(lab: Lab, pool: str) -> None:
    """The run ends, and what is left of it is found when the step operator's Modal can be asked again."""
    from bridge.cleanup.sweep import stacks, sweep

    ours = lab.stack("process", work_pool=pool, synchronous=False)
    name, operators = with_operators(ours, token_of(lab), token_of(lab))
    run = cancelled(lab, name)
    box = left_on_modal(lab.modal.token, name, run, operators[0])
    change(operators[0], modal_environment="nowhere")
    change(operators[1], token_id="{{gone.token_id}}", token_secret="{{gone.token_secret}}")
    (stack,) = stacks(name)
    report = sweep(stack, end=True)
    assert report.ended == {run.id}
    assert status(run) == "stopped"
    assert len(report.problems) == 2
    names_all(report.problems[0], f"step operator `{operators[0]}`", "nowhere")
    names_all(report.problems[1], f"step operator `{operators[1]}`", "token_id='{{gone.token_id}}'")
    assert lab.modal.sandbox(box).status == "running"

    for operator in operators:
        change(operator, **token_of(lab), modal_environment="main")
    (stack,) = stacks(name)
    report = sweep(stack, end=True)
    assert (report.problems, report.ended) == ([], {run.id})
    assert lab.modal.sandbox(box).status == "terminated"


def test_a_step_operator_in_the_orchestrator_s_place(lab: Lab, pool: str) -> None:
    """Each sandbox is listed once, also where the same environment is named in two ways."""
    from bridge.cleanup.sweep import stacks, sweep

    ours = lab.stack("modal", work_pool=pool, synchronous=False)
    name, operators = with_operators(ours, token_of(lab), {**token_of(lab), "modal_environment": "main"})
    run = cancelled(lab, name)
    box = left_on_modal(lab.modal.token, name, run, operators[0])
    (stack,) = stacks(name)
    report = sweep(stack, end=False, modal_environments=["main"])
    assert not report.problems
    (found,) = report.found
    assert [sandbox.id for sandbox, _ in found.sandboxes] == [box]
    assert sweep(stack, end=True).ended == {run.id}
    assert lab.modal.sandbox(box).status == "terminated"


GUEST = ("ak-guest", "as-guest")


@pytest.fixture
def shared(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackModal]:
    """A Modal with two accounts, of which one has an environment that the other hasn't."""
    modal = LoopbackModal(
        {IMAGE: LoopbackImage(python=Path(sys.executable))},
        environments=["main", "archive"],
        guests={GUEST: ["main"]},
    )
    for name, value in modal.env.items():
        monkeypatch.setenv(name, value)
    with modal:
        yield modal


def of_account(token: tuple[str, str]) -> dict[str, str]:
    return dict(zip(("token_id", "token_secret"), token, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["orchestrator", "step operator"])
def test_an_environment_that_one_of_two_accounts_has(lab: Lab, pool: str, shared: LoopbackModal, whose: str) -> None:
    """It is looked at in the account that has it; one that none of them has is an error, and the rest is swept."""
    from bridge.cleanup.sweep import stacks, sweep

    accounts = [shared.token, GUEST] if whose == "orchestrator" else [GUEST, shared.token]
    ours = lab.stack("modal", work_pool=pool, synchronous=False, **of_account(accounts[0]))
    name, (operator,) = with_operators(ours, of_account(accounts[1]))
    run = cancelled(lab, name)
    box = left_on_modal(shared.token, name, run, operator, "archive")
    (stack,) = stacks(name)
    report = sweep(stack, end=False, modal_environments=["archive", "nowhere"])
    (problem,) = report.problems
    names_all(problem, "'nowhere'")
    (found,) = report.found
    assert [sandbox.id for sandbox, _ in found.sandboxes] == [box]
    report = sweep(stack, end=True, modal_environments=["archive"])
    assert (report.problems, report.ended) == ([], {run.id})
    assert shared.sandbox(box).status == "terminated"
    assert status(run) == "stopped"


@pytest.mark.slow
def test_an_environment_that_one_of_two_stacks_has(lab: Lab, pool: str, shared: LoopbackModal) -> None:
    """As with `--all`; the second has ZenML's own orchestrator."""
    from bridge.cleanup.sweep import stacks, sweep_each

    orchestrated = lab.stack("modal", work_pool=pool, synchronous=False, **of_account(GUEST))
    name, _ = with_operators(orchestrated, of_account(shared.token))
    Client().update_stack(name, component_updates={StackComponentType.ORCHESTRATOR: ["default"]})
    both = [*stacks(orchestrated), *stacks(name)]
    for found in (both, both[::-1]):
        assert [report.problems for report in sweep_each(found, end=False, modal_environments=["archive"])] == [[], []]
    (alone,) = sweep_each(both[:1], end=False, modal_environments=["archive"])
    names_all(alone.problems[0], "'archive'")

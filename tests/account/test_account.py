"""`make test-modal`: on a real Modal account, CPU only. Nothing here runs in `make test`.

Needs a Modal token where the SDK looks for one. The diamond also needs a ZenML server and a stack for Modal that exists
already, since a sandbox on Modal can't reach this machine: log in with `zenml login` and set
`MODAL_PREFECT_TEST_STACK` to the stack's name.
"""

from __future__ import annotations

import os

import pytest

from bridge.plan import Resources, SandboxSpec
from bridge.runners.contract import CHECKS, Check, Lab, run_check
from bridge.runners.modal import ModalRunner

pytestmark = [pytest.mark.modal_account, pytest.mark.timeout(900)]

SPEC = SandboxSpec(image="python:3.11-slim", resources=Resources(cpu=0.25, memory=256), timeout=300)
STACK = "MODAL_PREFECT_TEST_STACK"


@pytest.mark.parametrize("backend", ["0", "1"], ids=["v1", "v2"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_contract(check: Check, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODAL_SANDBOX_V2", backend)
    async with ModalRunner() as runner:
        await run_check(check, runner, Lab(spec=SPEC, patience=180, alive=None, package=None))


@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_a_diamond(mode: str) -> None:
    if STACK not in os.environ:
        pytest.skip(f"{STACK} doesn't name a ZenML stack for Modal")
    from zenml import pipeline, step
    from zenml.client import Client

    @step(enable_cache=False)
    def number(above: int = 0, other: int = 0) -> int:
        return above + other + 1

    @pipeline(settings={"orchestrator": {"execution_mode": mode}})
    def account_diamond() -> None:
        top = number()
        number(number(top, id="left"), number(top, id="right"), id="bottom")

    Client().activate_stack(os.environ[STACK])
    run = account_diamond()
    assert run is not None
    run = Client().get_pipeline_run(run.id)
    assert run.status.value == "completed"
    assert run.steps["bottom"].output.load() == 5

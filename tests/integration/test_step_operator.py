"""The step operator `modal-prefect`: single steps of any orchestrator's pipelines in Modal sandboxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests import servers
from tests.integration.lab import IMAGE, STACK_CODE, Lab, Ran
from tests.loopback import LoopbackImage, LoopbackModal

CALLER_IMAGE = "registry.example.com/caller:1"
"""An image from which a step operator may be called: it has Modal's SDK."""


@pytest.fixture(scope="module")
def modal() -> Iterator[LoopbackModal]:
    """A Modal whose second image may call it."""
    environment = {"PYTHONPATH": "/opt/stack-code", "ZENML_ANALYTICS_OPT_IN": "false"}
    plain = LoopbackImage(
        python=servers.ROOT / ".venv-sandbox" / "bin" / "python",
        files={"/opt/stack-code": STACK_CODE},
        env=environment,
    )
    variables = dict(environment)
    caller = LoopbackImage(
        python=servers.ROOT / ".venv" / "bin" / "python", files={"/opt/stack-code": STACK_CODE}, env=variables
    )
    server = LoopbackModal({IMAGE: plain, CALLER_IMAGE: caller}, secrets={"hf": {"HF_TOKEN": "hf-secret"}})
    # Where Modal is; never whose account it is, which the component says.
    variables |= {name: value for name, value in server.env.items() if "TOKEN" not in name}
    with server:
        yield server


@pytest.fixture
def here(lab: Lab, modal: LoopbackModal, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab, whose processes reach this module's Modal and have no token of their own."""
    for name in modal.env:
        monkeypatch.delenv(name, raising=False)
    for name, value in modal.env.items():
        if "TOKEN" not in name:
            monkeypatch.setenv(name, value)
    return lab


class Operators:
    """Stacks with step operators."""

    def __init__(self, lab: Lab, modal: LoopbackModal) -> None:
        from zenml.client import Client
        from zenml.enums import StackComponentType

        lab.stack("modal")  # registers what a stack needs besides
        self._lab = lab
        self._modal = modal
        client = Client()
        for source in ("bridge.flavors.ModalPrefectStepOperatorFlavor",):
            client.create_flavor(source, StackComponentType.STEP_OPERATOR)

    def operator(self, runner: str, **configuration: Any) -> str:
        from zenml.client import Client
        from zenml.enums import StackComponentType

        name = f"operator-{runner}-{uuid4().hex[:6]}"
        if runner == "modal":
            configuration = {"token_id": self._modal.token[0], "token_secret": self._modal.token[1], **configuration}
        Client().create_stack_component(
            name, "modal-prefect", StackComponentType.STEP_OPERATOR, {"runner": runner, **configuration}
        )
        return name

    def stack(self, operators: list[str], orchestrator: str = "default", **configuration: Any) -> str:
        """``orchestrator`` is `default`, ZenML's local one, or where ours has its sandboxes."""
        from zenml.client import Client
        from zenml.enums import StackComponentType as Kind

        client = Client()
        name = f"operated-{uuid4().hex[:6]}"
        if orchestrator != "default":
            client.create_stack_component(
                name, "modal-prefect", Kind.ORCHESTRATOR, {"runner": orchestrator, **configuration}
            )
        client.create_stack(
            name,
            components={
                Kind.ORCHESTRATOR: name if orchestrator != "default" else "default",
                Kind.ARTIFACT_STORE: "shared",
                Kind.CONTAINER_REGISTRY: "registry",
                Kind.IMAGE_BUILDER: "builder",
                Kind.STEP_OPERATOR: operators,
            },
        )
        return name


@pytest.fixture(scope="module")
def operators(lab: Lab, modal: LoopbackModal) -> Operators:
    return Operators(lab, modal)


@pytest.fixture
def operated(lab: Lab) -> Any:
    import operated

    return operated


def boxes_of(modal: LoopbackModal, ran: Ran) -> dict[str, list[Any]]:
    """The sandboxes of a run, by step."""
    found: dict[str, list[Any]] = {}
    for box in modal.sandboxes():
        if box.tags.get("zenml_run_id") == str(ran.run.id):
            found.setdefault(box.tags.get("zenml_step", ""), []).append(box)
    return found


def test_steps_of_a_local_pipeline(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, capfd: pytest.CaptureFixture[str]
) -> None:
    from zenml.config import ResourceSettings

    stack = operators.stack([operators.operator("modal", tags={"team": "vision"})])
    settings = {"gpu": ["A100", "H100"], "secrets": ["hf"], "tags": {"cost": "7"}}
    options = {
        "steps": {
            "train": {
                "settings": {"step_operator": settings, "resources": ResourceSettings(gpu_count=2, memory="1GiB")},
                "environment": {"USER_VARIABLE": "of the step"},
            }
        }
    }
    ran = here.run(operated.mixed, stack, options=options)
    print(capfd.readouterr())
    assert ran.error is None
    assert ran.steps == dict.fromkeys(("one", "train", "again", "add"), "completed")
    assert ran.run.steps["add"].output.load() == 42 + 84
    boxes = boxes_of(modal, ran)
    assert set(boxes) == {"train", "again"}

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
        for source in ("bridge.flavors.ModalPrefectStepOperatorFlavor", "beside.BesideFlavor"):
            client.create_flavor(source, StackComponentType.STEP_OPERATOR)

    def operator(self, runner: str, **configuration: Any) -> str:
        from zenml.client import Client
        from zenml.enums import StackComponentType

        name = f"operator-{runner}-{uuid4().hex[:6]}"
        configuration = {"runner": runner, **self.token(runner), **configuration}
        Client().create_stack_component(name, "modal-prefect", StackComponentType.STEP_OPERATOR, configuration)
        return name

    def token(self, runner: str) -> dict[str, str]:
        return dict(zip(("token_id", "token_secret"), self._modal.token, strict=True)) if runner == "modal" else {}

    def foreign(self) -> str:
        """Somebody else's operator."""
        from zenml.client import Client
        from zenml.enums import StackComponentType

        name = f"beside-{uuid4().hex[:6]}"
        Client().create_stack_component(name, "beside", StackComponentType.STEP_OPERATOR, {})
        return name

    def stack(self, operators: list[str], orchestrator: str = "default", **configuration: Any) -> str:
        """``orchestrator`` is `default`, ZenML's local one, or where ours has its sandboxes."""
        from zenml.client import Client
        from zenml.enums import StackComponentType as Kind

        client = Client()
        name = f"operated-{uuid4().hex[:6]}"
        if orchestrator != "default":
            configuration = {"runner": orchestrator, **self.token(orchestrator), **configuration}
            client.create_stack_component(name, "modal-prefect", Kind.ORCHESTRATOR, configuration)
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
    from zenml.client import Client
    from zenml.config import ResourceSettings

    stack = operators.stack([operators.operator("modal", tags={"team": "vision", "cost": "1"}, timeout=600)])
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
    assert ran.error is None
    assert ran.steps == dict.fromkeys(("one", "train", "again", "add"), "completed")
    assert ran.run.steps["add"].output.load() == 42 + 84

    boxes = boxes_of(modal, ran)
    assert {step: len(found) for step, found in boxes.items()} == {"train": 1, "again": 1}
    (train,), (again,) = boxes["train"], boxes["again"]
    assert (train.gpu_type, train.gpu_count, train.memory_mib, train.timeout) == ("A100", 2, 1024, 600)
    assert (again.gpu_type, again.memory_mib, again.named_secrets) == ("", 0, ())
    assert train.app == "zenml-mixed"
    assert train.named_secrets == ("hf",)
    step_run = ran.run.steps["train"]
    tags = {"team": "vision", "cost": "7", "zenml_step": "train", "zenml_step_run_id": str(step_run.id)}
    assert tags.items() <= dict(train.tags).items()
    assert "prefect_flow_run_id" not in train.tags
    assert step_run.run_metadata["modal_sandbox_id"] == train.id
    assert str(step_run.run_metadata["modal_sandbox_url"]).endswith(train.id)
    assert step_run.output.run_metadata["rows"] == 41
    (trace,) = ran.traces("train")
    assert trace["sandbox"] == train.id
    assert (trace["USER_VARIABLE"], trace["HF_TOKEN"], trace["ZENML_STEP_OPERATOR"]) == (
        "of the step",
        "hf-secret",
        "True",
    )

    assert capfd.readouterr().out.count("training on 41 rows") == 2, "the output appears here"
    logs = [log for log in step_run.log_collection if log.source == "step"]
    entries = Client().zen_store.get_logs_entries(logs[0].id) if logs else None
    assert "training on 41 rows" in str(entries), "and in the logs of the step"


@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_steps_of_our_orchestrator(here: Lab, modal: LoopbackModal, operators: Operators, operated, mode: str) -> None:
    """A GPU for all is for the step that runs here and the one on our operator, not for those that wait for them."""
    ours, foreign = operators.operator("modal"), operators.foreign()
    stack = operators.stack([ours, foreign], "modal")
    gpu = {"settings": {"step_operator": {"gpu": "T4"}}}
    ran = here.run(
        operated.several,
        stack,
        settings={"execution_mode": mode},
        options={"steps": {"ours": gpu}},
        image=CALLER_IMAGE,
        ours=ours,
        foreign=foreign,
    )
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert set(ran.steps.values()) == {"completed"}
    assert (ran.folder / "written").read_text() == "x\n"
    boxes = [box for found in boxes_of(modal, ran).values() for box in found]
    own = {box.tags["zenml_step"]: box for box in boxes if "zenml_step_run_id" in box.tags}
    assert set(own) == {"ours", "shell"}
    assert own["ours"].gpu_type == "T4"
    assert own["shell"].argv[0] == "sh"
    assert not [box for box in boxes if box.gpu_type and box.id != own["ours"].id]
    step_run = ran.run.steps["ours"]
    assert ran.traces("ours")[0]["sandbox"] == own["ours"].id == step_run.run_metadata["modal_sandbox_id"]
    assert own["ours"].tags["prefect_flow_run_id"] == str(ran.flow_run.id)
    task_run = ran.task_runs["ours" if mode == "per_step" else "several"]
    prefix = "" if mode == "per_step" else "[ours] "
    assert step_run.run_metadata["prefect_task_run_id"] == str(task_run.id)
    assert f"{prefix}training on 41 rows" in here.logs(task_run, at_least=5)

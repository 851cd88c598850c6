"""The step operator `modal-prefect`: single steps of any orchestrator's pipelines in Modal sandboxes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import servers
from tests.integration.lab import IMAGE, STACK_CODE, Lab, Ran, eventually
from tests.integration.refusals import message_of, names_all, nothing_begins
from tests.integration.under import Under, cancel
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
    # The SDK that the tests have: another one may make calls that the loopback's protocol doesn't know.
    caller = LoopbackImage(python=Path(sys.executable), files={"/opt/stack-code": STACK_CODE}, env=variables)
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
        from zenml.exceptions import EntityExistsError

        lab.stack("modal")  # registers what a stack needs besides
        self._lab = lab
        self._modal = modal
        with suppress(EntityExistsError):  # another module of this session has made it
            Client().create_flavor("beside.BesideFlavor", StackComponentType.STEP_OPERATOR)

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


def logged(step_run: Any, source: str) -> str:
    """What ZenML has of the logs of a step."""
    from shared_store import local

    (log,) = [log for log in step_run.log_collection if log.source == source]
    place = Path(local(log.uri))
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return "".join(file.read_text() for file in files if file.is_file())


def test_steps_of_a_local_pipeline(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, capfd: pytest.CaptureFixture[str]
) -> None:
    from zenml.config import ResourceSettings

    stack = operators.stack([operators.operator("modal", tags={"team": "vision", "cost": "1"}, timeout=600)])
    settings = {"gpu": ["A100", "H100"], "secrets": ["hf"], "tags": {"cost": "7"}}
    resources = ResourceSettings(gpu_count=2, gpu_class="big", memory="1GiB")
    options = {
        "steps": {
            "train": {
                "settings": {"step_operator": settings, "resources": resources},
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
    variables = {"USER_VARIABLE": "of the step", "HF_TOKEN": "hf-secret", "ZENML_STEP_OPERATOR": "True"}
    assert variables.items() <= trace.items()

    assert capfd.readouterr().out.count("training on 41 rows") == 2, "the output appears here"
    assert logged(step_run, "step").count("training on 41 rows") == 1, "and in the logs of the step"
    assert train.id in logged(step_run, "prepare_step")
    assert "ResourceSettings.gpu_class of step train: not used" in logged(step_run, "prepare_step")


@pytest.mark.slow  # `make test` has our orchestrator with our operator as processes, and our operator through the SDK
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_steps_of_our_orchestrator(here: Lab, modal: LoopbackModal, operators: Operators, operated, mode: str) -> None:
    """A GPU for all is for the step that runs here and the one on our operator, not for those that wait for them."""
    ours, foreign = operators.operator("modal"), operators.foreign()
    stack = operators.stack([ours, foreign], "modal")
    gpu = {"settings": {"step_operator": {"gpu": "T4"}}}
    ran = here.run(
        operated.several,
        stack,
        settings={"execution_mode": mode, **({"gpu": "A100"} if mode == "per_step" else {})},
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
    with_gpu = {box.tags.get("zenml_step"): box.gpu_type for box in boxes if box.gpu_type}
    assert with_gpu == {"ours": "T4", **({"one": "A100"} if mode == "per_step" else {})}
    step_run = ran.run.steps["ours"]
    assert ran.traces("ours")[0]["sandbox"] == own["ours"].id == step_run.run_metadata["modal_sandbox_id"]
    assert own["ours"].tags["prefect_flow_run_id"] == str(ran.flow_run.id)
    task_run = ran.task_runs["ours" if mode == "per_step" else "several"]
    prefix = "" if mode == "per_step" else "[ours] "
    assert step_run.run_metadata["prefect_task_run_id"] == str(task_run.id)
    assert f"{prefix}training on 41 rows" in here.logs(task_run, at_least=5)
    assert logged(step_run, "step").count("training on 41 rows") == 1
    assert "training on 41 rows" not in logged(step_run, "prepare_step"), "it is there once"


def strike(modal: LoopbackModal, folder: Path, end: str) -> None:
    """Wait until the step's own code is under way, then strike the sandbox that it runs in."""
    trace = folder / f"{end}.jsonl"
    lines = eventually(lambda: trace.read_text() if trace.exists() else "", lambda text: "\n" in text, 180)
    getattr(modal, end)(json.loads(lines.splitlines()[0])["sandbox"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warm", "sandboxes"), [(True, {"": 2}), (False, {"exception": 2, "exit": 1, "evict": 2})], ids=["warm", "cold"]
)
def test_what_an_end_costs(
    here: Lab,
    modal: LoopbackModal,
    operators: Operators,
    operated,
    tmp_path: Path,
    warm: bool,
    sandboxes: dict[str, int],
) -> None:
    """On the local orchestrator, which goes on after a failure and retries by itself."""
    striker = threading.Thread(target=strike, args=(modal, tmp_path, "evict"))
    striker.start()
    ran = here.run(
        operated.struck,
        operators.stack([operators.operator("modal", warm=warm)]),
        into=tmp_path,
        ends={"exception": 1, "exit": 0, "evict": 0, "refused": 0},
    )
    striker.join()
    assert ran.steps == {"exception": "completed", "exit": "failed", "evict": "completed", "refused": "failed"}
    assert ran.status == "failed"
    versions = {name: step.version for name, step in ran.run.steps.items()}
    assert versions == {"exception": 2, "exit": 1, "evict": 1, "refused": 1}
    assert {step: len(found) for step, found in boxes_of(modal, ran).items()} == sandboxes
    said = {name: step.exception_info for name, step in ran.run.steps.items() if step.exception_info is not None}
    assert set(said) == {"exit", "refused"}
    names_all(said["exit"].message, "exited with 0, but ZenML has no successful step run", "os._exit")
    names_all(said["refused"].message, "The sandbox was refused", "no-such-secret", "modal secret create")
    # What the step's own process couldn't send there stands in its logs too.
    assert "exited with 0, but" in logged(ran.run.steps["exit"], "prepare_step")


class Held:
    """A pipeline that hangs in a step on the operator, in a thread."""

    def __init__(self, lab: Lab, stack: str, pipeline: Any, folder: Path, **arguments: Any) -> None:
        self.ran = Ran(folder)

        def work() -> None:
            self.ran = lab.run(pipeline, stack, into=folder, **arguments)

        self._thread = threading.Thread(target=work, daemon=True)  # a test that fails must not wait for it
        self._thread.start()
        assert eventually(lambda: self.ran.traces("hangs") or self.ran.error, bool, 120)
        assert self.ran.error is None

    def box(self, modal: LoopbackModal) -> Any:
        return modal.sandbox(self.ran.traces("hangs")[0]["sandbox"])

    def join(self) -> Ran:
        self._thread.join(120)
        assert not self._thread.is_alive()
        return self.ran


def of_step(step_operator: str, run_id: str) -> tuple[Any, Any]:
    """The step operator as another process makes it, and the step run that hangs."""
    from zenml.client import Client
    from zenml.enums import StackComponentType
    from zenml.stack import StackComponent

    client = Client()
    model = client.get_stack_component(StackComponentType.STEP_OPERATOR, step_operator)
    (step_run,) = client.list_run_steps(pipeline_run_id=run_id, name="hangs", hydrate=True).items
    return StackComponent.from_model(model), step_run


def test_somebody_else_asks_and_cancels(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path
) -> None:
    """As after a crash: a process that didn't begin a step run finds its sandbox."""
    operator = operators.operator("modal")
    held = Held(here, operators.stack([operator]), operated.held, tmp_path)
    other, step_run = of_step(operator, held.box(modal).tags["zenml_run_id"])
    assert other.get_status(step_run).value == "running"
    other.cancel(step_run)
    assert held.box(modal).status != "running"
    ran = held.join()
    assert ran.steps == {"hangs": "stopped"}
    assert other.get_status(step_run).value == "stopped"


CALLER = """
import sys
from tests.integration.lab import IMAGE, PROJECT, STACK_CODE
sys.path[:0] = [str(STACK_CODE), str(PROJECT)]
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.utils import source_utils
source_utils.set_custom_source_root(str(PROJECT))
Client().activate_stack(sys.argv[1])
import operated
docker = DockerSettings(parent_image=IMAGE, skip_build=True)
operated.held.with_options(settings={"docker": docker})(sys.argv[2])
"""


def end_a_caller(modal: LoopbackModal, stack: str, ran: Ran, number: signal.Signals) -> Any:
    """Let a process call the operator, and end it with a signal while the step runs; return the step's sandbox."""
    folder = ran.folder
    environment = {**os.environ, "ZENML_CONFIG_PATH": str(folder / "zenml"), "PYTHONPATH": str(servers.ROOT)}
    with (folder / "caller.log").open("wb") as log:
        caller = subprocess.Popen(
            [sys.executable, "-c", CALLER, stack, str(folder)], env=environment, cwd=folder, stdout=log, stderr=log
        )
    try:
        assert eventually(lambda: ran.traces("hangs") or caller.poll() is not None, bool, 120)
        assert caller.poll() is None, (folder / "caller.log").read_text()[-3000:]
        box = modal.sandbox(ran.traces("hangs")[0]["sandbox"])
        assert box.status == "running"
        caller.send_signal(number)
        caller.wait(60)
    finally:
        caller.kill()
    return box


@pytest.mark.slow  # one that asks no more is swept, see below
def test_ctrl_c_ends_the_sandbox(here: Lab, modal: LoopbackModal, operators: Operators, tmp_path: Path) -> None:
    ran = Ran(tmp_path)
    box = end_a_caller(modal, operators.stack([operators.operator("modal")]), ran, signal.SIGINT)
    assert modal.sandbox(box.id).status == "terminated"
    here.read(ran, box.tags["zenml_run_id"])
    assert ran.steps == {"hangs": "failed"}, (tmp_path / "caller.log").read_text()[-3000:]


@pytest.mark.slow
def test_without_its_caller_a_sandbox_ends(
    here: Lab, modal: LoopbackModal, operators: Operators, tmp_path: Path
) -> None:
    ran = Ran(tmp_path)
    operator = operators.operator("modal", orphan_timeout=8)
    box = end_a_caller(modal, operators.stack([operator]), ran, signal.SIGKILL)
    assert modal.sandbox(box.id).status == "running"
    assert eventually(lambda: modal.sandbox(box.id).status, lambda status: status != "running", 60) != "running"
    here.read(ran, box.tags["zenml_run_id"])
    assert ran.steps == {"hangs": "failed"}
    said = ran.run.steps["hangs"].exception_info.message
    names_all(said, "Whoever called the step operator for this step is gone", "no sign of life for 8 s")


@pytest.mark.slow
def test_whoever_asks_after_a_step_waits_for_it(
    here: Lab, modal: LoopbackModal, operators: Operators, tmp_path: Path
) -> None:
    """As the next process of a dynamic pipeline does, which never began the step."""
    operator = operators.operator("modal", orphan_timeout=8)
    box = end_a_caller(modal, operators.stack([operator]), Ran(tmp_path), signal.SIGKILL)
    other, step_run = of_step(operator, box.tags["zenml_run_id"])
    pause, until = threading.Event(), time.monotonic() + 25
    while time.monotonic() < until:
        assert other.get_status(step_run).value == "running"
        pause.wait(1)  # as ZenML's runner does
    assert modal.sandbox(box.id).status == "running"
    assert eventually(lambda: modal.sandbox(box.id).status, lambda status: status != "running", 60) != "running"


def as_if_its_caller_had_died(step_run: Any) -> None:
    """The caller, which lives, says so every 450 s: it has said so years ago for the last time."""
    from zenml.client import Client
    from zenml.enums import MetadataResourceTypes
    from zenml.models import RunMetadataResource

    from bridge.names import METADATA_CALLER_ALIVE

    resource = RunMetadataResource(id=step_run.id, type=MetadataResourceTypes.STEP_RUN)
    Client().create_run_metadata({METADATA_CALLER_ALIVE: "2020-01-01T00:00:00.000+00:00"}, [resource])


def test_what_no_caller_waits_for_is_swept(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path
) -> None:
    """In a stack whose orchestrator is ZenML's local one."""
    from bridge.cleanup.sweep import stacks, sweep

    operator = operators.operator("modal")
    name = operators.stack([operator])
    held = Held(here, name, operated.held, tmp_path)
    box = held.box(modal)
    _, step_run = of_step(operator, box.tags["zenml_run_id"])
    (stack,) = stacks(name)
    assert sweep(stack, end=True).lines() == [f"stack {name}: 1 step runs with a caller, 1 sandboxes in them"]
    as_if_its_caller_had_died(step_run)
    report = sweep(stack, end=False)
    names_all("\n".join(report.lines()), "nobody's: whoever called the step operator", f"{box.id} of step hangs")
    assert held.box(modal).status == "running"
    report = sweep(stack, end=True)
    assert not report.problems
    assert ": ended: " in report.lines()[1]
    assert held.box(modal).status == "terminated"
    ran = held.join()
    assert ran.steps == {"hangs": "failed"}
    assert "Whoever called the step operator for this step is gone" in ran.run.steps["hangs"].exception_info.message
    assert sweep(stack, end=True).found == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_a_run_of_ours_is_stopped(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path, mode: str
) -> None:
    from zenml.client import Client

    stack = operators.stack([operators.operator("modal")], "modal")
    settings = {"execution_mode": mode}
    held = Held(here, stack, operated.held, tmp_path, settings=settings, image=CALLER_IMAGE)
    run = Client().get_pipeline_run(held.box(modal).tags["zenml_run_id"])
    Client().active_stack.orchestrator.stop_run(run)
    ran = held.join()
    assert not [box for found in boxes_of(modal, ran).values() for box in found if box.status == "running"]
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert ran.steps == {"hangs": "stopped"}


@pytest.mark.slow
def test_whoever_called_the_operator_is_lost(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path
) -> None:
    """The step goes on in its sandbox, and the next one that calls the operator for it takes it up."""
    stack = operators.stack([operators.operator("modal")], "modal")
    settings = {"execution_mode": "per_step", "warm": False}
    held = Held(here, stack, operated.held, tmp_path, settings=settings, image=CALLER_IMAGE, first=True)
    box = held.box(modal)

    def callers() -> list[Any]:
        ours = [other for other in modal.sandboxes() if other.tags.get("zenml_run_id") == box.tags["zenml_run_id"]]
        return [other for other in ours if other.id != box.id]

    def said() -> str:
        return str([modal.output(other.id) for other in callers()[1:]])

    (caller,) = callers()
    modal.evict(caller.id)
    assert box.id in eventually(said, lambda found: box.id in found, 90)
    (tmp_path / "go").touch()
    ran = held.join()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert len(ran.traces("hangs")) == 1
    assert ran.run.steps["hangs"].version == 1
    assert [other.id for other in boxes_of(modal, ran)["hangs"] if "zenml_step_run_id" in other.tags] == [box.id]


@pytest.mark.slow  # test_dynamic.py has one, and a static pipeline has the operator
def test_a_dynamic_pipeline(here: Lab, modal: LoopbackModal, operators: Operators, operated) -> None:
    """Two steps at once, on ZenML's local orchestrator."""
    ran = here.run(operated.dynamic, operators.stack([operators.operator("modal")]))
    assert ran.error is None
    assert ran.status == "completed"
    assert ran.run.steps["add"].output.load() == 42 + 52 + 1
    boxes = [box for found in boxes_of(modal, ran).values() for box in found]
    assert len(boxes) == 2
    assert max(box.created_at for box in boxes) < min(box.created_at + box.seconds for box in boxes)


@pytest.mark.slow  # test_examples.py has one, with ZenML's local orchestrator
def test_local_processes(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our orchestrator and our operator, both on this machine."""
    monkeypatch.setenv("PYTHONPATH", str(STACK_CODE))  # as installed packages are
    ours = operators.operator("process")
    created = modal.stats().created
    ran = here.run(operated.several, operators.stack([ours], "process"), ours=ours)
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert modal.stats().created == created
    (trace,) = ran.traces("ours")
    assert trace["sandbox"] == ran.run.steps["ours"].run_metadata["modal_sandbox_id"]
    assert trace["sandbox"].startswith("sb-local-")


@pytest.mark.slow
def test_a_command_of_a_child_ends_with_the_run(
    here: Lab, operators: Operators, operated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sandbox belongs to the run that called the child, which alone is looked after when it ends."""
    from bridge import names
    from bridge.components import Place

    async def running() -> list[str]:
        async with Place("process").runner_for() as runner:
            found = await runner.tagged({names.TAG_STEP_OPERATOR: operator})
        return [tags[names.TAG_STEP] for _, tags in found]

    monkeypatch.setenv("PYTHONPATH", str(STACK_CODE))  # as installed packages are
    operator = operators.operator("process")
    stack = operators.stack([operator], "process")
    under = Under(here, tmp_path).start(operated.calling, "process", {}, stack=stack)
    assert under.run_id  # before there is a child's
    assert eventually((tmp_path / "sleeps").exists, bool, 120)
    assert asyncio.run(running()) == ["sleeps"]
    cancel(under.flow_run_id)
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled")
    assert asyncio.run(running()) == []


BAD_SETTINGS = {
    "the count in the type": ({"gpu": "A100:2"}, {}, ("gpu='A100:2'", "gpu_count=2")),
    "a GPU of no type": (
        {},
        {"gpu_count": 2},
        ("gpu_count of step train", "ModalPrefectStepOperator"),
    ),
    "a timeout of nothing": ({"timeout": 0}, {}, ("timeout=0", "at least 1")),
    "a tag of ours": ({"tags": {"zenml_step_run_id": "x"}}, {}, ("zenml_step_run_id", "set by modal-prefect")),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused(here: Lab, operators: Operators, operated, case: str) -> None:
    settings, resources, says = BAD_SETTINGS[case]
    step = {"settings": {**({"step_operator": settings} if settings else {}), "resources": resources}}
    stack = operators.stack([operators.operator("modal")])
    with nothing_begins(here):
        message = message_of(here.run(operated.mixed, stack, options={"steps": {"train": step}}))
    names_all(message, *says)


def test_stacks_that_cannot_work_are_refused(here: Lab, operators: Operators, operated) -> None:
    without = {"token_id": None, "token_secret": None}
    stack = operators.stack([operators.operator("modal", **without)], "modal")
    with nothing_begins(here):
        message = message_of(here.run(operated.mixed, stack))
    names_all(message, "token_id=None", "starts its sandboxes from one of the orchestrator", "ZenML secret")


@pytest.mark.slow
def test_an_image_without_the_sdk(here: Lab, modal: LoopbackModal, operators: Operators, operated) -> None:
    operator = operators.operator("modal")
    settings = {"execution_mode": "pipeline"}
    ran = here.run(operated.mixed, operators.stack([operator], "modal"), settings=settings, image=IMAGE)
    assert ran.steps["train"] == "failed"
    said = ran.run.steps["train"].exception_info.message
    names_all(said, f"step operator `{operator}`", "isn't installed here", "modal>=1.4.3", "skip_build")


@pytest.mark.slow  # the README's example; what it shows, test_steps_of_a_local_pipeline shows too
def test_the_example(here: Lab, modal: LoopbackModal, operators: Operators, tmp_path: Path) -> None:
    from zenml.config import DockerSettings
    from zenml.utils import source_utils

    folder = servers.ROOT / "examples" / "step_operator"
    source_utils.set_custom_source_root(str(folder))
    spec = importlib.util.spec_from_file_location("pipeline", folder / "pipeline.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["pipeline"] = example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    here.activate(operators.stack([operators.operator("modal")]))
    docker = DockerSettings(parent_image=IMAGE, skip_build=True)
    run = example.one_step_on_modal.with_options(settings={"docker": docker}, enable_cache=False)()
    ran = here.read(Ran(tmp_path), run.id)
    assert ran.steps == dict.fromkeys(("load", "train", "report"), "completed")
    ((box,),) = boxes_of(modal, ran).values()
    assert (box.gpu_type, box.cpu_milli, box.memory_mib, box.timeout) == ("A100", 4000, 7630, 3600)

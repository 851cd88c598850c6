"""Pipelines whose images Modal builds: no Docker, no container registry, no image builder."""

from __future__ import annotations

import importlib.util
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import servers
from tests.integration.lab import IMAGE, STACK_CODE, Lab, Ran, eventually
from tests.integration.refusals import message_of, names_all, nothing_begins
from tests.loopback import LoopbackImage
from tests.wheel import wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package that is nowhere else."""
    folder = tmp_path_factory.mktemp("wheels")
    name, packed = wheel("unheard-of", "greeting = 'hello'\n")
    (folder / name).write_bytes(packed)
    return folder


def docker(wheels: Path, **more: Any) -> dict[str, Any]:
    return {
        "requirements": ["unheard-of==1.0"],
        "python_package_installer_args": {"no-index": None, "find-links": str(wheels)},
        **more,
    }


def check_it_runs_again_without_a_build(lab: Lab, ran: Ran) -> None:
    """The snapshot, by itself, as a deployment runs it."""
    from bridge.flow import zenml_pipeline

    builds = lab.modal.stats().image_builds
    assert zenml_pipeline(snapshot_id=ran.run.snapshot.id, return_state=True).is_completed()
    assert len(ran.traces("greet")) == 2
    assert lab.modal.stats().image_builds == builds


def bare_stack(lab: Lab, **configuration: Any) -> str:
    """A stack on Modal with nothing in it that has to do with images."""
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    client = Client()
    orchestrator = client.get_stack(lab.stack("modal", **configuration)).components[Kind.ORCHESTRATOR][0]
    name = f"bare-{uuid4().hex[:6]}"
    client.create_stack(name, components={Kind.ORCHESTRATOR: orchestrator.name, Kind.ARTIFACT_STORE: "shared"})
    return name


def test_a_pipeline_without_docker(lab: Lab, wheels: Path) -> None:
    """ZenML's own parent image, a requirement that is nowhere else, the code in the image; then its snapshot again."""
    import unheard
    from zenml.client import Client

    assert importlib.util.find_spec("unheard_of") is None
    stack = bare_stack(lab)
    given = docker(wheels, allow_download_from_artifact_store=False, environment={"SHELL_LEVEL": 1})
    ran = lab.run(unheard.greeting, stack, docker=given)
    assert ran.error is None
    assert ran.steps == {"greet": "completed", "answer": "completed"}
    assert [trace["said"] for trace in ran.traces("greet")] == ["hello world"]
    snapshot = ran.run.snapshot
    (item,) = snapshot.build.images.values()
    assert item.image.startswith("modal://im-")
    assert item.contains_code
    assert snapshot.code_path is None
    check_it_runs_again_without_a_build(lab, ran)
    newest = Client().list_pipeline_runs(sort_by="desc:created", size=1, hydrate=True)[0]
    assert newest.id != ran.run.id
    assert (newest.status.value, newest.snapshot.id) == ("completed", snapshot.id)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_schedule_and_a_worker_use_the_built_image(lab: Lab, wheels: Path, pool: str, tmp_path: Path) -> None:
    """It is built once, at the submission; a worker adds `bridge` to it, once, and nobody builds anything else."""
    import unheard
    from zenml.client import Client
    from zenml.config.schedule import Schedule

    from bridge.runners.modal_objects import PACKAGE_PATH

    stack = bare_stack(lab, work_pool=pool)
    given = docker(wheels, environment={"IMAGE_OF": uuid4().hex})

    def have_bridge() -> list[bool]:
        return [(image.root / PACKAGE_PATH[1:]).is_dir() for image in lab.modal.images()]

    before = len(have_bridge())
    ran = lab.run(unheard.greeting, stack, docker=given, into=tmp_path)
    assert (ran.error, ran.flow_run.work_pool_name) == (None, pool)
    (item,) = ran.run.snapshot.build.images.values()
    layers = have_bridge()[before:]
    assert (sum(layers), layers[-1]) == (1, True)
    seen, builds = before + len(layers), lab.modal.stats().image_builds

    start = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(seconds=16)
    every = timedelta(seconds=12)
    schedule = Schedule(
        name=f"built-{uuid4().hex[:6]}", start_time=start, interval_second=every, end_time=start + 2 * every
    )
    options = {"schedule": schedule}
    assert lab.run(unheard.greeting, stack, docker=given, options=options, into=tmp_path, begun=False).error is None
    found = Client().list_schedules(name=schedule.name).items[0]

    def ended() -> list[Any]:
        runs = Client().list_pipeline_runs(schedule_id=found.id, hydrate=True).items
        return [run for run in runs if run.status.is_finished]

    fired = eventually(ended, lambda runs: len(runs) >= 2, 120)
    Client().delete_schedule(found.id)
    assert [run.status.value for run in fired] == ["completed"] * len(fired)
    assert len(fired) >= 2
    for run in fired:
        assert [image.image for image in run.snapshot.build.images.values()] == [item.image]
    assert {trace["image"] for trace in ran.traces("greet")} == {given["environment"]["IMAGE_OF"]}
    boxes = [box for run in (ran.run, *fired) for box in lab.sandboxes(Ran(tmp_path, run))]
    assert len(boxes) >= 3
    # That of `bridge` is made again where somebody edits the package meanwhile, as whoever works on it does.
    later = have_bridge()[seen:]
    assert all(later)
    assert lab.modal.stats().image_builds - builds == len(later)


def test_a_build_that_fails(lab: Lab, wheels: Path) -> None:
    """The output of the command that failed, before there is a run; and one mistake that isn't tried at all."""
    import unheard

    stack = lab.stack("modal", image_source="modal")
    created = lab.modal.stats().created
    ran = lab.run(unheard.greeting, stack, docker=docker(wheels, requirements=["unheard-of==2.0"], parent_image=IMAGE))
    assert ran.run is None
    names_all(str(ran.error), "layer", "user requirements: unheard-of==2.0", "unheard-of==2.0", "exit code 1")
    url = "https://me:hunter2@pypi.example.com/simple"
    wrong = docker(wheels, python_package_installer_args={"index-url": url})
    ran = lab.run(unheard.greeting, stack, docker=wrong)
    names_all(str(ran.error), "DockerSettings.python_package_installer_args of the pipeline", "build_secrets")
    assert "hunter2" not in str(ran.error)
    assert lab.modal.stats().created == created


def test_a_step_with_an_image_of_its_own_in_pipeline_mode(lab: Lab, wheels: Path) -> None:
    """Its steps share one sandbox: that is said before Modal has built two images, and before there is a run."""
    import unheard
    from zenml.config import DockerSettings

    stack = bare_stack(lab)
    own = {"answer": {"settings": {"docker": DockerSettings(requirements=["six"])}}}
    with nothing_begins(lab):
        ran = lab.run(unheard.greeting, stack, docker=docker(wheels), options={"steps": own})
    assert ran.run is None
    names_all(message_of(ran), "DockerSettings of step answer=['requirements']", "step greet", "'per_step'")


@pytest.mark.slow
def test_a_dynamic_pipeline_without_docker(lab: Lab, wheels: Path) -> None:
    """The image of the function is that of its isolated steps too; its snapshot runs again without a build."""
    import unheard

    ran = lab.run(unheard.dynamic_greeting, bare_stack(lab), docker=docker(wheels))
    assert ran.error is None
    assert ran.steps == {"greet": "completed", "answer": "completed"}
    assert ran.states == {"dynamic_greeting": "Completed", "greet": "Completed"}
    assert [trace["said"] for trace in ran.traces("answer")] == ["hello world"]
    assert {box.tags.get("zenml_step", "") for box in lab.sandboxes(ran)} == {"", "greet"}
    assert len({box.image for box in lab.sandboxes(ran)}) == 1
    check_it_runs_again_without_a_build(lab, ran)


@pytest.mark.slow
def test_an_isolated_step_with_an_image_of_its_own(lab: Lab, wheels: Path) -> None:
    import unheard

    ran = lab.run(unheard.dynamic_with_own_image, bare_stack(lab), docker=docker(wheels))
    assert ran.error is None
    assert ran.steps == {"greet": "completed", "answer": "completed"}
    assert [trace["image"] for trace in ran.traces("greet")] == ["this step"]
    assert len({box.image for box in lab.sandboxes(ran)}) == 2
    assert set(ran.run.snapshot.build.images) == {"orchestrator", "greet.orchestrator"}


@pytest.mark.slow
def test_a_private_parent_image(lab: Lab, wheels: Path) -> None:
    """Modal pulls it with the credentials of the stack's container registry, which no sandbox and no log gets."""
    import unheard
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    private = f"registry.example.com/private:{uuid4().hex[:8]}"
    python = servers.ROOT / ".venv-sandbox" / "bin" / "python"
    files = {"/opt/stack-code": STACK_CODE}
    image = LoopbackImage(python, files=files, env={"PYTHONPATH": "/opt/stack-code"}, credentials=("me", "hunter2"))
    lab.modal.image_changes(private, image)
    client, name = Client(), f"private-{uuid4().hex[:6]}"
    client.create_secret(name, {"username": "me", "password": "hunter2"})
    uri = {"uri": "registry.example.com"}
    client.create_stack_component(name, "default", Kind.CONTAINER_REGISTRY, {**uri, "authentication_secret": name})
    orchestrator = lab.stack("modal", image_source="modal", tags={"test": name})
    parts = {Kind.ORCHESTRATOR: orchestrator, Kind.ARTIFACT_STORE: "shared", Kind.CONTAINER_REGISTRY: name}
    client.create_stack(name, components=parts)
    given = docker(wheels, parent_image=private)

    without = lab.run(unheard.greeting, orchestrator, docker=given)
    names_all(str(without.error), private, "authentication required")
    ran = lab.run(unheard.greeting, name, docker=given)
    assert ran.error is None
    assert ran.steps == {"greet": "completed", "answer": "completed"}
    for box in lab.sandboxes(ran):
        assert "hunter2" not in repr((box, dict(box.environment)))


def test_a_build_that_is_not_to_be_reused(lab: Lab, wheels: Path) -> None:
    """``prevent_build_reuse``: a tag that has moved is pulled anew, once in each call of the pipeline."""
    import unheard

    tag = f"registry.example.com/moving:{uuid4().hex[:8]}"
    python, files = servers.ROOT / ".venv-sandbox" / "bin" / "python", {"/opt/stack-code": STACK_CODE}
    stack = bare_stack(lab)
    pulled, seen = [], []
    for version in ("one", "two"):
        env = {"PYTHONPATH": "/opt/stack-code", "IMAGE_OF": version}
        lab.modal.image_changes(tag, LoopbackImage(python, files=files, env=env))
        before = {image.id for image in lab.modal.images()}
        ran = lab.run(unheard.greeting, stack, docker=docker(wheels, parent_image=tag, prevent_build_reuse=True))
        assert ran.error is None
        made = [image for image in lab.modal.images() if image.id not in before]
        pulled.append(sum(f"FROM {tag}" in image.commands for image in made))
        seen += [trace["image"] for trace in ran.traces("greet")]
    assert (pulled, seen) == ([1, 1], ["one", "two"])


@pytest.mark.slow  # the orchestrator's test above shows the build
def test_a_step_operator_without_docker(lab: Lab, wheels: Path) -> None:
    """Under ZenML's local orchestrator, in a stack without a container registry."""
    import unheard
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    lab.stack("modal")
    client = Client()
    name = f"bare-operator-{uuid4().hex[:6]}"
    client.create_stack_component(name, "modal-prefect", Kind.STEP_OPERATOR, {})
    parts = {Kind.ORCHESTRATOR: "default", Kind.ARTIFACT_STORE: "shared", Kind.STEP_OPERATOR: name}
    client.create_stack(name, components=parts)
    step = {"steps": {"greet": {"step_operator": name}}}
    # What the stack requires is what the operator needs where it is called from, which is here.
    given = docker(wheels, install_stack_requirements=False)
    ran = lab.run(unheard.greeting, name, docker=given, options=step)
    assert ran.error is None
    assert ran.steps == {"greet": "completed", "answer": "completed"}
    ((key, item),) = ran.run.snapshot.build.images.items()
    assert key == "greet.modal_prefect_step_operator"
    assert item.image.startswith("modal://im-")
    assert ran.run.snapshot.code_path is not None

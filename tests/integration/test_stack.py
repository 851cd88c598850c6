"""The flavour in a stack: registration, what goes with it, and ZenML's own Modal integration beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import servers
from tests.integration.lab import PROJECT, STACK_CODE, Lab
from tests.integration.refusals import message_of, names_all, nothing_begins
from tests.loopback import LoopbackImage, LoopbackModal


def test_the_flavour_as_ZenML_knows_it(lab: Lab) -> None:
    from zenml.client import Client
    from zenml.enums import StackComponentType

    lab.stack("modal")
    flavor = Client().get_flavor_by_name_and_type("modal-prefect", StackComponentType.ORCHESTRATOR)
    assert flavor.is_custom
    assert flavor.source == "bridge.flavors.ModalPrefectOrchestratorFlavor"
    properties = flavor.config_schema["properties"]
    assert {"runner", "gpu", "execution_mode", "max_parallelism", "token_id", "work_pool"} <= set(properties)
    assert all(properties[name].get("description") for name in ("runner", "gpu", "execution_mode", "work_pool"))


def component(kind: str, flavor: str, configuration: Mapping[str, Any]) -> str:
    from zenml.client import Client
    from zenml.enums import StackComponentType

    name = f"{flavor}-{uuid4().hex[:6]}"
    Client().create_stack_component(name, flavor, StackComponentType(kind), dict(configuration))
    return name


def stack_with(lab: Lab, **changed: str | None) -> str:
    """A stack for ``runner="modal"`` but for what is ``changed``: the component's name, or None to leave it out."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    lab.stack("modal")
    components: dict[str, str | None] = {
        "orchestrator": component("orchestrator", "modal-prefect", {}),
        "artifact_store": "shared",
        "container_registry": "registry",
        "image_builder": "builder",
        **changed,
    }
    name = f"changed-{uuid4().hex[:6]}"
    Client().create_stack(
        name, components={StackComponentType(kind): value for kind, value in components.items() if value is not None}
    )
    return name


class TestValidator:
    def refused(self, lab: Lab, stack: str) -> str:
        import inputs

        with nothing_begins(lab):
            return message_of(lab.run(inputs.given, stack, names=["train"]))

    def test_a_local_artifact_store(self, lab: Lab) -> None:
        message = self.refused(lab, stack_with(lab, artifact_store="default"))
        names_all(message, "artifact_store=`default`", "local", "S3", '`runner="process"`')

    def test_no_container_registry(self, lab: Lab) -> None:
        """Without one Modal builds the images, unless the component says that they come from a registry."""
        from_registry = component("orchestrator", "modal-prefect", {"image_source": "registry"})
        message = self.refused(lab, stack_with(lab, orchestrator=from_registry, container_registry=None))
        names_all(
            message, "container_registry=None", "Add a remote one", f"`{from_registry}`", '`image_source="modal"`'
        )

    def test_a_local_container_registry(self, lab: Lab) -> None:
        local = component("container_registry", "default", {"uri": "localhost:5000"})
        message = self.refused(lab, stack_with(lab, container_registry=local))
        names_all(message, f"container_registry=`{local}`", "local", "such as Docker Hub", '`image_source="modal"`')

    def test_no_image_builder(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """ZenML puts a local one in, unless it is told not to."""
        monkeypatch.setenv("ZENML_SKIP_IMAGE_BUILDER_DEFAULT", "true")
        message = self.refused(lab, stack_with(lab, image_builder=None))
        names_all(message, "image_builder=None", "zenml image-builder register")

    def test_another_local_component(self, lab: Lab, tmp_path: Path) -> None:
        from zenml.client import Client
        from zenml.enums import StackComponentType

        lab.stack("modal")
        Client().create_flavor("local_diary.LocalDiaryFlavor", StackComponentType.ALERTER)
        diary = component("alerter", "local-diary", {"folder": str(tmp_path)})
        message = self.refused(lab, stack_with(lab, alerter=diary))
        names_all(message, f"alerter=`{diary}`", str(tmp_path), "Replace it by a remote one")

    @pytest.mark.parametrize("runner", ["modal", "process"])
    def test_windows(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, runner: str) -> None:
        """Whatever the runner: no flow run is begun that the runner would have to refuse."""
        stack = lab.stack(runner)
        monkeypatch.setattr(sys, "platform", "win32")
        message = self.refused(lab, stack)
        names_all(message, "sys.platform=win32", "doesn't run on Windows", "Linux or macOS", "`wsl --install`")
        assert "runner=" not in message

    def test_a_step_operator_on_windows(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also under another orchestrator, and before anything else that its stack lacks."""
        from zenml.client import Client
        from zenml.stack import Stack

        from bridge.planning.validation import check_operator_stack
        from bridge.settings import ModalPrefectStepOperatorConfig

        stack = Stack.from_model(Client().get_stack(lab.stack("modal")))
        for runner in ("modal", "process"):
            config = ModalPrefectStepOperatorConfig.model_validate({"runner": runner})
            assert "doesn't run on Windows" not in check_operator_stack(stack, config, "there")[1]
            with monkeypatch.context() as there:
                there.setattr(sys, "platform", "win32")
                fits, message = check_operator_stack(stack, config, "there")
            assert not fits
            assert "doesn't run on Windows" in message


DEFAULT_STORE = """
import json, pathlib, sys
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
import inputs

client = Client()
client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", Kind.ORCHESTRATOR)
found = {"store": client.zen_store.type.value}
for runner in ("modal", "process"):
    client.create_stack_component(runner, "modal-prefect", Kind.ORCHESTRATOR, {"runner": runner})
    client.create_stack(runner, components={Kind.ORCHESTRATOR: runner, Kind.ARTIFACT_STORE: "default"})
    client.activate_stack(runner)
    try:
        run = inputs.given(sys.argv[1], names=["prepare", "train"])
    except Exception as error:
        found[runner] = str(error)
    else:
        run = client.get_pipeline_run(run.id)
        found[runner] = {"status": run.status.value, "steps": sorted(run.steps), "flow_run": run.orchestrator_run_id}
pathlib.Path("found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow  # the examples run on one
def test_a_default_local_stack(lab: Lab, tmp_path: Path) -> None:
    """SQLite and the artifact store that ZenML comes with, in a program of their own."""
    script = tmp_path / "script.py"
    script.write_text(DEFAULT_STORE)
    shutil.copy(PROJECT / "inputs.py", tmp_path)
    environment = {
        **servers.clean_environment(),
        **servers.zenml_client_environment(tmp_path / "zenml", None),
        **{name: value for name, value in os.environ.items() if name.startswith(("PREFECT", "DO_NOT"))},
        "PYTHONPATH": str(servers.ROOT),
    }
    program = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert program.returncode == 0, program.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["store"] == "sql"
    names_all(found["modal"], "artifact_store=`default`", '`runner="process"`')
    assert found["process"]["status"] == "completed"
    assert found["process"]["steps"] == ["prepare", "train"]
    assert (tmp_path / "ran").read_text() == "xx"
    flow_run, _ = lab.read_flow_run(found["process"]["flow_run"])
    assert flow_run.state.name == "Completed"


@pytest.fixture
def native_modal(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Modal of its own, whose image holds what ZenML's controller needs: the SDK, and where Modal is."""
    environment = {"PYTHONPATH": "/opt/stack-code:/opt/project", "ZENML_ANALYTICS_OPT_IN": "false"}
    image = LoopbackImage(
        python=Path(sys.executable),
        files={"/opt/stack-code": STACK_CODE, "/opt/project": PROJECT},
        env=environment,
    )
    modal = LoopbackModal({"registry.example.com/native:1": image})
    environment |= modal.env
    for name, value in modal.env.items():
        monkeypatch.setenv(name, value)
    with modal:
        yield modal


@pytest.mark.skipif(not os.access("/", os.W_OK), reason="ZenML's own entrypoints make the folder /app")
@pytest.mark.slow  # half a minute
def test_beside_ZenMLs_own_modal_integration(lab: Lab, native_modal: LoopbackModal, tmp_path: Path) -> None:
    """Both flavours in one store and one process: theirs runs a pipeline unpatched, and so does ours, afterwards."""
    import inputs
    from zenml.client import Client
    from zenml.config import DockerSettings
    from zenml.integrations.modal.flavors.modal_orchestrator_flavor import ModalOrchestratorSettings
    from zenml.utils import source_utils

    source_utils.set_custom_source_root(str(PROJECT))
    theirs = component(
        "orchestrator", "modal", dict(zip(("token_id", "token_secret"), native_modal.token, strict=True))
    )
    had_app = os.path.exists("/app")
    lab.activate(stack_with(lab, orchestrator=theirs))
    docker = DockerSettings(
        parent_image="registry.example.com/native:1",
        skip_build=True,
        allow_download_from_artifact_store=False,
        allow_download_from_code_repository=False,
    )
    settings = {"docker": docker, "orchestrator": ModalOrchestratorSettings(timeout=120)}
    try:
        run = inputs.dynamic.with_options(settings=settings)(str(tmp_path))
    finally:
        if not had_app and os.path.exists("/app"):
            os.rmdir("/app")
    run = Client().get_pipeline_run(run.id)
    assert run.status.value == "completed"
    assert (tmp_path / "ran").read_text() == "x"
    (box,) = native_modal.sandboxes()
    assert box.app == f"zenml-{run.id}"

    ours = lab.run(inputs.given, lab.stack("process"), names=["train"])
    assert (ours.error, ours.status, ours.flow_run.state.name) == (None, "completed", "Completed")

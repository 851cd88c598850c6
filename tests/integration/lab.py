"""Runs pipelines on registered stacks and reads both sides afterwards."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from tests import servers
from tests.loopback import LoopbackModal

IMAGE = "registry.example.com/ml:1"
PROJECT = servers.ROOT / "tests" / "integration" / "project"
STACK_CODE = servers.ROOT / "tests" / "integration" / "stack"


@dataclass
class Ran:
    """What came of one call of a pipeline."""

    folder: Path
    run: Any = None
    error: BaseException | None = None
    flow_run: Any = None
    task_runs: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return str(self.run.status.value)

    @property
    def steps(self) -> dict[str, str]:
        """The status of the newest step run of each step, as ZenML has it."""
        return {name: step.status.value for name, step in self.run.steps.items()}

    @property
    def states(self) -> dict[str, str]:
        """The state of each task run, as Prefect has it."""
        return {name: task_run.state.name for name, task_run in self.task_runs.items()}

    @property
    def inputs(self) -> dict[str, set[str]]:
        """The names of each task run's upstream task runs."""
        names = {task_run.id: name for name, task_run in self.task_runs.items()}
        return {
            name: {names[given.id] for inputs in task_run.task_inputs.values() for given in inputs}
            for name, task_run in self.task_runs.items()
        }

    def traces(self, step: str, what: str = "begin") -> list[dict[str, Any]]:
        """What the step's own code wrote down."""
        path = self.folder / f"{step}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["what"] == what]


class Lab:
    """The stacks, and what runs on them."""

    def __init__(self, folder: Path, modal: LoopbackModal, prefect: servers.Server, zenml: servers.Server) -> None:
        self.folder = folder
        self.modal = modal
        self.prefect = prefect
        self.zenml = zenml
        self._stacks: dict[str, str] = {}
        self._flavors = False

    def stack(self, place: str, **configuration: Any) -> str:
        """Register (once for each configuration) a stack whose sandboxes are at ``place``; return its name."""
        key = json.dumps([place, configuration], sort_keys=True)
        if key not in self._stacks:
            self._register_flavors()
            self._stacks[key] = self._register(place, configuration)
        return self._stacks[key]

    def _register_flavors(self) -> None:
        from zenml.client import Client
        from zenml.enums import StackComponentType
        from zenml.exceptions import EntityExistsError

        if self._flavors:
            return
        client = Client()
        orchestrator, operator = StackComponentType.ORCHESTRATOR, StackComponentType.STEP_OPERATOR
        store, registry = StackComponentType.ARTIFACT_STORE, StackComponentType.CONTAINER_REGISTRY
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        for source, kind in (
            ("bridge.flavors.ModalPrefectOrchestratorFlavor", orchestrator),
            ("bridge.flavors.ModalPrefectStepOperatorFlavor", operator),
            ("shared_store.SharedStoreFlavor", store),
        ):
            with suppress(EntityExistsError):  # of a try that was cut off
                client.create_flavor(source, kind)
        for name, flavor, kind, configuration in (
            ("shared", "shared-folder", store, {"path": f"shared://{str(artifacts).lstrip('/')}"}),
            ("registry", "default", registry, {"uri": "registry.example.com"}),
            ("builder", "local", StackComponentType.IMAGE_BUILDER, {}),
        ):
            with suppress(EntityExistsError):
                client.create_stack_component(name, flavor, kind, configuration)
        self._flavors = True

    def _register(self, place: str, configuration: Mapping[str, Any]) -> str:
        from zenml.client import Client
        from zenml.enums import StackComponentType

        client = Client()
        name = f"{place}-{uuid4().hex[:6]}"
        client.create_stack_component(
            name, "modal-prefect", StackComponentType.ORCHESTRATOR, {"runner": place, **configuration}
        )
        components: dict[Any, Any] = {StackComponentType.ORCHESTRATOR: name}
        if place == "modal":
            components |= {
                StackComponentType.ARTIFACT_STORE: "shared",
                StackComponentType.CONTAINER_REGISTRY: "registry",
                StackComponentType.IMAGE_BUILDER: "builder",
            }
        else:
            components[StackComponentType.ARTIFACT_STORE] = "default"
        client.create_stack(name, components=components)
        return name

    def activate(self, stack: str) -> None:
        from zenml.client import Client

        Client().activate_stack(stack)

    def run(
        self,
        pipeline: Any,
        stack: str,
        *,
        settings: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        image: str = IMAGE,
        docker: Mapping[str, Any] | None = None,
        into: Path | None = None,
        begun: bool = True,
        **arguments: Any,
    ) -> Ran:
        """Call a pipeline on a stack and read what both sides say of it.

        Its image is ``image``, or what ``docker``, its ``DockerSettings``, say; ``begun`` waits for the task runs.
        """
        from zenml.client import Client
        from zenml.config import DockerSettings
        from zenml.utils import source_utils

        source_utils.set_custom_source_root(str(PROJECT))
        self.activate(stack)
        folder = into or self.folder / "traces" / uuid4().hex[:8]
        folder.mkdir(parents=True, exist_ok=True)
        built = DockerSettings(**docker) if docker is not None else DockerSettings(parent_image=image, skip_build=True)
        prepared = pipeline.with_options(
            settings={"docker": built, **({"orchestrator": dict(settings)} if settings else {})},
            **(options or {}),
        )
        ran = Ran(folder)
        known = {run.id for run in Client().list_pipeline_runs(size=10, sort_by="desc:created").items}
        try:
            prepared(str(folder), **arguments)
        except Exception as error:
            ran.error = error
        runs = Client().list_pipeline_runs(size=10, sort_by="desc:created").items
        new = [run for run in runs if run.id not in known and run.child_key is None]
        if new:
            self.read(ran, new[0].id, begun=begun)
        return ran

    def read(self, ran: Ran, run_id: UUID, *, begun: bool = True) -> Ran:
        """Read both sides; ZenML's alone where another orchestrator ran it."""
        from prefect.exceptions import ObjectNotFound
        from zenml.client import Client

        ran.run = Client().get_pipeline_run(run_id)
        if ran.run.orchestrator_run_id:
            with suppress(ObjectNotFound):
                ran.flow_run, ran.task_runs = self.read_flow_run(
                    UUID(ran.run.orchestrator_run_id), begun=begun, expected=_task_runs_of(ran.run)
                )
        return ran

    def read_flow_run(
        self, flow_run_id: UUID, *, begun: bool = True, expected: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The flow run and its newest task runs by name, once Prefect has recorded the end of all of them.

        Where fewer than ``expected`` come: of those that there are, when no other has come for a while.
        """
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter

        with get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(flow_run_id)
            if not begun:
                return flow_run, {}

            def read() -> list[Any]:
                ours = FlowRunFilter(id={"any_": [flow_run_id]})  # type: ignore[arg-type]
                return client.read_task_runs(flow_run_filter=ours)

            newest = (0, time.monotonic())

            def settled(found: list[Any]) -> bool:
                nonlocal newest
                if len(found) != newest[0]:
                    newest = (len(found), time.monotonic())
                if not found or not all(run.state and run.state.is_final() for run in found):
                    return False
                return len(found) == expected or time.monotonic() - newest[1] > 3

            task_runs = eventually(read, settled)
        return flow_run, {run.name: run for run in sorted(task_runs, key=lambda run: run.created)}

    def logs(self, task_run: Any, at_least: int = 1) -> list[str]:
        """The messages of a task run's sandbox, in Prefect's order."""
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import LogFilter
        from prefect.client.schemas.sorting import LogSort

        with get_client(sync_client=True) as client:

            def read() -> list[Any]:
                chosen = LogFilter(task_run_id={"any_": [task_run.id]})  # type: ignore[arg-type]
                found: list[Any] = []
                while True:
                    page = client.read_logs(chosen, limit=200, offset=len(found), sort=LogSort.TIMESTAMP_ASC)
                    found += page
                    if len(page) < 200:
                        return [log for log in found if log.name.startswith("bridge.sandbox.")]

            return [log.message for log in eventually(read, lambda found: len(found) >= at_least)]

    def sandboxes(self, ran: Ran) -> list[Any]:
        """The sandboxes that the loopback made for a run."""
        return self.sandboxes_of(ran.run.id)

    def sandboxes_of(self, run_id: UUID) -> list[Any]:
        """The same, where there is no more than the run's id yet."""
        return [box for box in self.modal.sandboxes() if box.tags.get("zenml_run_id") == str(run_id)]

    def running(self, ran: Ran) -> list[Any]:
        """Those of a run that haven't ended: another test's may run on."""
        return [box for box in self.sandboxes(ran) if box.status in ("pending", "running")]

    def sandboxes_by_step(self, ran: Ran) -> Counter[str]:
        """How many sandboxes each step had."""
        return Counter(box.tags.get("zenml_step", "") for box in self.sandboxes(ran))


def _task_runs_of(run: Any) -> int:
    """How many task runs a run has in the end, if none of its steps was done before."""
    settings = run.config.settings.get("orchestrator")
    per_step = settings is not None and settings.model_dump().get("execution_mode") == "per_step"
    return len(run.snapshot.step_configurations) if per_step else 1


def asked(run: Any) -> tuple[str, dict[str, str]]:
    """What the orchestrator says of a run and its steps, without what ZenML makes of it."""
    from zenml.client import Client
    from zenml.enums import StackComponentType
    from zenml.stack import StackComponent

    run = Client().get_pipeline_run(run.id)
    orchestrator: Any = StackComponent.from_model(run.stack.components[StackComponentType.ORCHESTRATOR][0])
    status, steps = orchestrator.fetch_status(run, include_steps=True)
    return status.value, {name: step.value for name, step in steps.items()}


def eventually(read: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 20.0) -> Any:
    """Read until it is good: Prefect records task runs behind the client's back."""
    deadline = time.monotonic() + seconds
    while True:
        found = read()
        if good(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.4)


@contextmanager
def lab_beside(lab: Lab, folder: Path, variables: Mapping[str, str]) -> Iterator[Lab]:
    """Another ZenML server, whose settings are ``variables``; this process is its client while the block runs."""
    from tests.integration.conftest import another_client

    served = servers.zenml_server(folder / "server")
    server = replace(served, environment={**served.environment, **variables}).start()
    try:
        with another_client(servers.zenml_client_environment(folder / "zenml", server)):
            yield Lab(folder, lab.modal, lab.prefect, server)
    finally:
        server.stop()

"""Runs a pipeline on a stack whose artifacts are in a cloud's store, and writes down what came of it.

In ``.venv-cloud``, which has the clouds' libraries: ``python cloud_program.py <request as JSON>``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """``secret`` are values of the secret that the store finds its account with, ``connector`` the arguments of the
    service connector that it has instead. ``image`` is what sandboxes on Modal run in, from ``registry``: a flavour and
    a ``uri``, with the same connector; without an image they are processes."""

    flavor: str
    path: str
    folder: str
    mode: str
    configuration: dict[str, Any] = field(default_factory=dict)
    secret: dict[str, str] = field(default_factory=dict)
    connector: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0
    image: str = ""
    registry: tuple[str, str] = ("default", "registry.example.com")

    def line(self) -> str:
        return json.dumps(asdict(self))


FOUND = "found.json"
"""What came of it, in the folder of the request."""


def main(request: Request) -> dict[str, Any]:
    from stored_far import stored_far
    from zenml.client import Client
    from zenml.config import DockerSettings
    from zenml.enums import StackComponentType as Kind
    from zenml.utils import source_utils

    # Else it is the folder of this program.
    source_utils.set_custom_source_root(str(Path(__file__).parent / "project"))
    client = Client()
    client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", Kind.ORCHESTRATOR)
    own = {"runner": "modal" if request.image else "process", "execution_mode": request.mode}
    client.create_stack_component("ours", "modal-prefect", Kind.ORCHESTRATOR, own)
    configuration = {"path": request.path, **request.configuration}
    if request.secret:
        client.create_secret("far", request.secret)
        configuration["authentication_secret"] = "far"
    client.create_stack_component("far", request.flavor, Kind.ARTIFACT_STORE, configuration)
    components = {Kind.ORCHESTRATOR: "ours", Kind.ARTIFACT_STORE: "far"}
    if request.image:
        flavor, uri = request.registry
        client.create_stack_component("far", flavor, Kind.CONTAINER_REGISTRY, {"uri": uri})
        client.create_stack_component("builder", "local", Kind.IMAGE_BUILDER, {})
        components |= {Kind.CONTAINER_REGISTRY: "far", Kind.IMAGE_BUILDER: "builder"}
    if request.connector:
        connector, _ = client.create_service_connector("far", **request.connector, verify=False)
        for kind in set(components) & {Kind.ARTIFACT_STORE, Kind.CONTAINER_REGISTRY}:
            client.update_stack_component("far", kind, connector_id=connector.id)
    client.create_stack("far", components=components)
    client.activate_stack("far")
    docker = DockerSettings(parent_image=request.image or None, skip_build=bool(request.image))
    run = stored_far.with_options(settings={"docker": docker})(request.folder, request.seconds)
    run = client.get_pipeline_run(run.id)
    return {
        "status": run.status.value,
        "steps": {name: found.status.value for name, found in run.steps.items()},
        "total": run.steps["last"].output.load(),
        "uri": run.steps["last"].output.uri,
        "run": str(run.id),
    }


if __name__ == "__main__":
    asked = Request(**json.loads(sys.argv[1]))
    Path(asked.folder, FOUND).write_text(json.dumps(main(asked)))

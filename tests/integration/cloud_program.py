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
    """``secret`` are values of the secret that the store finds its account with, ``connector`` those of a service
    connector; ``life`` is how many seconds the connector's credentials count as good; 0 without one."""

    flavor: str
    path: str
    folder: str
    mode: str
    configuration: dict[str, Any] = field(default_factory=dict)
    secret: dict[str, str] = field(default_factory=dict)
    connector: dict[str, Any] = field(default_factory=dict)
    life: int = 0
    seconds: float = 0

    def line(self) -> str:
        return json.dumps(asdict(self))


FOUND = "found.json"
"""What came of it, in the folder of the request."""
SHORTEST = 900
"""Seconds: no session of AWS's STS is shorter."""


def main(request: Request) -> dict[str, Any]:
    from stored_far import stored_far
    from zenml.client import Client
    from zenml.enums import StackComponentType

    client = Client()
    client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
    own = {"runner": "process", "execution_mode": request.mode}
    client.create_stack_component("ours", "modal-prefect", StackComponentType.ORCHESTRATOR, own)
    configuration = {"path": request.path, **request.configuration}
    if request.secret:
        client.create_secret("far", request.secret)
        configuration["authentication_secret"] = "far"
    store = client.create_stack_component("far", request.flavor, StackComponentType.ARTIFACT_STORE, configuration)
    if request.connector:
        connector, _ = client.create_service_connector(
            "far",
            **request.connector,
            expiration_seconds=SHORTEST,
            expires_skew_tolerance=SHORTEST - request.life,
        )
        client.update_stack_component(store.id, StackComponentType.ARTIFACT_STORE, connector_id=connector.id)
    components = {StackComponentType.ORCHESTRATOR: "ours", StackComponentType.ARTIFACT_STORE: "far"}
    client.create_stack("far", components=components)
    client.activate_stack("far")
    run = stored_far(request.folder, request.seconds)
    run = client.get_pipeline_run(run.id)
    return {
        "status": run.status.value,
        "steps": {name: found.status.value for name, found in run.steps.items()},
        "total": run.steps["last"].output.load(),
        "uri": run.steps["last"].output.uri,
    }


if __name__ == "__main__":
    asked = Request(**json.loads(sys.argv[1]))
    Path(asked.folder, FOUND).write_text(json.dumps(main(asked)))

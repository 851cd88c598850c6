"""Register the flavour and a stack for a loopback Modal, and activate it, as an administrator would."""

from __future__ import annotations

import sys
from pathlib import Path
from uuid import uuid4

from zenml.client import Client
from zenml.enums import StackComponentType


def main(artifacts: Path) -> None:
    client = Client()
    client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
    client.create_flavor("shared_store.SharedStoreFlavor", StackComponentType.ARTIFACT_STORE)
    name = f"modal-{uuid4().hex[:6]}"
    parts = {
        StackComponentType.ORCHESTRATOR: ("modal-prefect", {"execution_mode": "per_step"}),
        StackComponentType.ARTIFACT_STORE: ("shared-folder", {"path": f"shared://{str(artifacts).lstrip('/')}"}),
        StackComponentType.CONTAINER_REGISTRY: ("default", {"uri": "registry.example.com"}),
        StackComponentType.IMAGE_BUILDER: ("local", {}),
    }
    for kind, (flavor, configuration) in parts.items():
        client.create_stack_component(name, flavor, kind, configuration)
    client.create_stack(name, components=dict.fromkeys(parts, name))
    client.activate_stack(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

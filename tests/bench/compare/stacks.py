"""A process of its own: registers the stacks to compare, and answers their ids by name."""

from __future__ import annotations

from typing import Any

from zenml.client import Client
from zenml.enums import StackComponentType

from tests.bench.answers import answer, asked


def register(wanted: dict[str, Any]) -> dict[str, str]:
    """Register what isn't there yet. ``artifacts`` is the folder of the shared store, None for local stacks."""
    client = Client()
    add = client.create_stack_component
    client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
    ids = {"zenml local": str(client.get_stack("default").id)}
    if wanted["artifacts"] is None:
        add("ours", "modal-prefect", StackComponentType.ORCHESTRATOR, {"runner": "process"})
        return ids | {"ours local": _stack("ours-local", {StackComponentType.ORCHESTRATOR: "ours"})}
    client.create_flavor("shared_store.SharedStoreFlavor", StackComponentType.ARTIFACT_STORE)
    path = f"shared://{wanted['artifacts'].lstrip('/')}"
    add("shared", "shared-folder", StackComponentType.ARTIFACT_STORE, {"path": path})
    add("registry", "default", StackComponentType.CONTAINER_REGISTRY, {"uri": "registry.example.com"})
    add("builder", "local", StackComponentType.IMAGE_BUILDER, {})
    add("ours", "modal-prefect", StackComponentType.ORCHESTRATOR, {"runner": "modal"})
    add("native", "modal", StackComponentType.ORCHESTRATOR, {})
    remote = {
        StackComponentType.ARTIFACT_STORE: "shared",
        StackComponentType.CONTAINER_REGISTRY: "registry",
        StackComponentType.IMAGE_BUILDER: "builder",
    }
    for name in ("ours", "native"):
        ids[name] = _stack(name, {**remote, StackComponentType.ORCHESTRATOR: name})
    return ids


def _stack(name: str, components: dict[StackComponentType, str]) -> str:
    local: dict[Any, Any] = {StackComponentType.ARTIFACT_STORE: "default"}
    return str(Client().create_stack(name, components={**local, **components}).id)


if __name__ == "__main__":
    answer(register(asked()))

"""A user's process: registers stacks whose secrets are in ZenML, and runs pipelines on them.

Asked on stdin, as JSON; what it prints is what a user sees, tracebacks with all their causes included.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.enums import StackComponentType
from zenml.utils import source_utils

from bridge.cli import main as command_line

PROJECT = Path(__file__).parent / "project"


def register(asked: dict[str, Any]) -> None:
    """Secrets, flavours and the components that all stacks share."""
    client = Client()
    for name, values in asked["secrets"].items():
        client.create_secret(name, values)
    if not asked["stacks"]:
        return
    client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
    client.create_flavor("bridge.flavors.ModalPrefectStepOperatorFlavor", StackComponentType.STEP_OPERATOR)
    client.create_flavor("shared_store.SharedStoreFlavor", StackComponentType.ARTIFACT_STORE)
    add = client.create_stack_component
    add("shared", "shared-folder", StackComponentType.ARTIFACT_STORE, {"path": asked["artifacts"]})
    add("builder", "local", StackComponentType.IMAGE_BUILDER, {})
    for name in asked["registries"]:
        registry = {"uri": "registry.example.com", "authentication_secret": name}
        add(name, "default", StackComponentType.CONTAINER_REGISTRY, registry)
    for name, stack in asked["stacks"].items():
        add(name, "modal-prefect", StackComponentType.ORCHESTRATOR, stack["orchestrator"])
        local = stack["orchestrator"]["runner"] == "process"
        components: dict[StackComponentType, Any] = {
            StackComponentType.ORCHESTRATOR: name,
            StackComponentType.ARTIFACT_STORE: "default" if local else "shared",
        }
        if not local:
            components[StackComponentType.CONTAINER_REGISTRY] = stack["registry"]
            components[StackComponentType.IMAGE_BUILDER] = "builder"
        if "operator" in stack:
            add(name, "modal-prefect", StackComponentType.STEP_OPERATOR, stack["operator"])
            components[StackComponentType.STEP_OPERATOR] = name
        client.create_stack(name, components=components)


def run(asked: dict[str, Any]) -> None:
    """Run one pipeline; print what a user would see of its failure."""
    import secretive

    Client().activate_stack(asked["stack"])
    docker = DockerSettings(parent_image=asked["image"], **asked["docker"])
    settings = {"docker": docker, "orchestrator": asked["settings"]}
    environment = {"RUN_TOKEN": os.environ["MARK_RUN_VARIABLE"]}
    pipeline = getattr(secretive, asked["pipeline"]).with_options(settings=settings, environment=environment)
    print(f"=== {asked['pipeline']} on {asked['stack']}", flush=True)
    try:
        pipeline(asked["word"], asked["expected"])
    except Exception:
        traceback.print_exc()
    sys.stderr.flush()


def examine(stack: str) -> None:
    """Let the doctor look at a stack in which something is wrong; print what it says."""
    Client().activate_stack(stack)
    print(f"=== doctor on {stack}", flush=True)
    result = CliRunner().invoke(command_line, ["doctor"])
    print(result.output)
    assert result.exit_code == 1, result.exit_code
    if result.exception is not None:
        print("".join(traceback.format_exception(result.exception)), flush=True)


def main() -> None:
    asked = json.load(sys.stdin)
    sys.path.insert(0, str(PROJECT))
    source_utils.set_custom_source_root(str(PROJECT))
    if "register" in asked:
        register(asked["register"])
    for each in asked["runs"]:
        run(each)
    for stack in asked.get("examined", ()):
        examine(stack)


if __name__ == "__main__":
    main()

"""Whether a stack can run where the orchestrator's sandboxes are."""

from __future__ import annotations

from zenml.stack import Stack

from bridge import names
from bridge.settings import ModalPrefectOrchestratorConfig


def check_stack(stack: Stack, config: ModalPrefectOrchestratorConfig) -> tuple[bool, str]:
    """Return whether the stack's components can be reached from its sandboxes, else what is wrong and the fix.

    For ZenML's ``StackValidator``. Local processes reach everything.
    """
    if config.runner == "process":
        return True, ""
    if stack.artifact_store.config.is_local:
        return False, (
            f"artifact_store=`{stack.artifact_store.name}` is local, and a Modal sandbox can't reach this machine's "
            f'files. Use a remote one (S3, GCS, Azure), or `runner="process"` on the orchestrator `{stack.orchestrator.name}` '
            "to run steps as local processes."
        )
    registry = stack.container_registry
    if registry is None:
        return False, (
            f"container_registry=None: the stack `{stack.name}` has no container registry from which Modal could pull the "
            "steps' images. Add a remote one and an image builder to the stack. Images that Modal builds by itself "
            f'(`image_source="modal"`) come with a later release of {names.DISTRIBUTION}.'
        )
    if registry.config.is_local:
        return False, (
            f"container_registry=`{registry.name}` is local, and Modal can't pull from this machine. Use a remote one, "
            f"such as Docker Hub, ECR, GCR or GitHub's."
        )
    if stack.image_builder is None:
        return False, (
            f"image_builder=None: the stack `{stack.name}` has nothing that builds the steps' images. Add one: "
            "`zenml image-builder register local --flavor local`, then `zenml stack update -i local`."
        )
    for component in stack.all_components:
        if component.local_path is not None and component.id != stack.orchestrator.id:
            return False, (
                f"{component.type.value}=`{component.name}` keeps its data on this machine at {component.local_path}, where no "
                "Modal sandbox can reach it. Replace it by a remote one."
            )
    return True, ""

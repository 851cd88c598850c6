"""Whether a stack can run where the orchestrator's sandboxes are, and who builds their images."""

from __future__ import annotations

import shlex
import sys

from zenml.stack import Stack

from bridge import names
from bridge.errors import InvalidSettings
from bridge.settings import (
    ModalPrefectOrchestratorConfig,
    ModalPrefectOrchestratorSettings,
    ModalPrefectStepOperatorConfig,
    RunnerConfig,
)

_ON_A_WORKER = (
    "for a worker, deploy the flow with `prefect deploy --all` and run the snapshot with "
    f"`prefect deployment run {names.DEPLOYMENT}/{names.DEPLOYMENT} -p snapshot_id=...`"
)

_WINDOWS = (
    f"sys.platform=win32: {names.DISTRIBUTION} doesn't run on Windows, whatever the runner. Use Linux or macOS, or the "
    "Linux of WSL (`wsl --install`)."
)


def check_stack(stack: Stack, config: ModalPrefectOrchestratorConfig) -> tuple[bool, str]:
    """Return whether the stack's components can be reached from its sandboxes, else what is wrong and the fix.

    For ZenML's ``StackValidator``. Local processes reach everything. Nothing runs on Windows.
    """
    return _check(stack, config, "orchestrator", stack.orchestrator.name)


def check_operator_stack(stack: Stack, config: ModalPrefectStepOperatorConfig, name: str) -> tuple[bool, str]:
    """The same for a step operator of that name, whose caller may be a sandbox itself."""
    fits, wrong = _check(stack, config, "step operator", name)
    caller = stack.orchestrator.config
    from_modal = isinstance(caller, ModalPrefectOrchestratorConfig) and caller.runner == "modal"
    has_token = vars(config)["token_id"] is not None  # attribute access would resolve a reference to a secret
    if fits and from_modal and config.runner == "modal" and not has_token:
        return False, (
            f"token_id=None: the step operator `{name}` starts its sandboxes from one of the orchestrator "
            f"`{stack.orchestrator.name}`, where this machine's Modal configuration isn't. Give it a token_id and "
            "a token_secret, best as references to a ZenML secret."
        )
    return fits, wrong


def _check(stack: Stack, config: RunnerConfig, kind: str, name: str) -> tuple[bool, str]:
    if sys.platform == "win32":
        return False, _WINDOWS
    if config.runner == "process":
        return True, ""
    if stack.artifact_store.config.is_local:
        return False, (
            f"artifact_store=`{stack.artifact_store.name}` is local, and a Modal sandbox can't reach this machine's "
            f"files. Use a remote one (S3, GCS, Azure), `zenml stack update {shlex.quote(stack.name)} -a <artifact "
            f'store>`, or `runner="process"` on the {kind} `{name}` to run steps as local processes, '
            f"`zenml {kind.replace(' ', '-')} update {shlex.quote(name)} --runner=process`."
        )
    if not modal_builds(config, stack) and (wrong := _no_way_for_images(stack, kind, name)):
        return False, wrong
    for component in stack.all_components:
        if component.local_path is not None and component.id != stack.orchestrator.id:
            return False, (
                f"{component.type.value}=`{component.name}` keeps its data on this machine at {component.local_path}, "
                "where no Modal sandbox can reach it. Replace it by a remote one."
            )
    return True, ""


def _no_way_for_images(stack: Stack, kind: str, name: str) -> str:
    """What a stack lacks for images that ZenML builds and Modal pulls; "" if nothing."""
    registry = stack.container_registry
    by_modal = f'or set `image_source="modal"` on the {kind} `{name}`: then Modal builds the images, without either'
    if registry is None:
        return (
            f"container_registry=None: image_source='registry', and the stack `{stack.name}` has no container registry "
            f"from which Modal could pull the steps' images. Add a remote one and an image builder to the stack, "
            f"{by_modal}."
        )
    if registry.config.is_local:
        return (
            f"container_registry=`{registry.name}` is local, and Modal can't pull from this machine. Use a remote one, "
            f"such as Docker Hub, ECR, GCR or GitHub's, {by_modal}."
        )
    if stack.image_builder is None:
        return (
            f"image_builder=None: the stack `{stack.name}` has nothing that builds the steps' images. Add one: "
            "`zenml image-builder register local --flavor local`, then `zenml stack update -i local`; "
            f"{by_modal}."
        )
    return ""


def modal_builds(config: RunnerConfig, stack: Stack) -> bool:
    """Whether Modal builds the images of a component's sandboxes, rather than ZenML for a registry."""
    return modal_builds_with(config, has_registry=stack.container_registry is not None)


def modal_builds_with(config: RunnerConfig, *, has_registry: bool) -> bool:
    """The same for a stack that need not be loaded."""
    source = vars(config)["image_source"]  # attribute access would look for references to secrets
    if config.runner == "process":
        return False
    return source == "modal" or (source is None and not has_registry)


def refuse_run(settings: ModalPrefectOrchestratorSettings, work_pool: str | None) -> None:
    """Raise ``InvalidSettings`` for what the run asks for and only a work pool can do."""
    if work_pool is not None:
        return
    if not settings.synchronous:
        raise InvalidSettings(
            "synchronous",
            False,
            "without a work pool the submitting process is the one that runs the flow, so it has to wait for it",
            f"Set `work_pool` on the orchestrator, or synchronous=True; {_ON_A_WORKER}",
        )
    for field in ("work_queue", "job_variables"):
        if value := getattr(settings, field):
            fix = f"Leave {field} out; {_ON_A_WORKER}"
            raise InvalidSettings(field, value, "it says something of a work pool, and there is none", fix)

"""Every string that leaves this code and is read again: tags, metadata keys, variables, slugs.

Stacks store these names, dashboards show them, sandboxes of an older release answer to them. Changing one
is a breaking change, so they stand here and nowhere else. Standard library only.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from urllib.parse import quote

FLAVOR = "modal-prefect"
DISTRIBUTION = "zenml-modal-prefect"
DEPLOYMENT = "modal-prefect"
SWEEP = "modal-prefect-sweep"
"""The flow that ends what nobody owns, and its deployment."""
AUTOMATION_CRASH = "modal-prefect: a flow without a sign of life has crashed"
AUTOMATION_SWEEP = "modal-prefect: what a crashed flow has left is ended"

# Import paths that ZenML's database keeps or that reach a sandbox's command line.
ORCHESTRATOR_FLAVOR_SOURCE = "bridge.flavors.ModalPrefectOrchestratorFlavor"
STEP_OPERATOR_FLAVOR_SOURCE = "bridge.flavors.ModalPrefectStepOperatorFlavor"
SWEEP_ENTRYPOINT = "bridge.sweep_flow.sweep_stacks"
FLOW_ENTRYPOINT = "bridge.flow.zenml_pipeline"
"""A module path without a colon: Prefect imports it from the installed package (prefect/flows.py)."""

# Variables of a sandbox. Ids only: none of them is a secret.
ENV_FLOW_RUN_ID = "ZENML_MODAL_PREFECT_FLOW_RUN_ID"
ENV_TASK_RUN_ID = "ZENML_MODAL_PREFECT_TASK_RUN_ID"
ENV_RUN_ID = "ZENML_MODAL_PREFECT_RUN_ID"
ENV_WORK_DIR = "ZENML_MODAL_PREFECT_WORK_DIR"
"""Folder into which code is unpacked and in which the step runs; ZenML's own default is ``/app``."""
ENV_SOURCE_ROOT = "ZENML_MODAL_PREFECT_SOURCE_ROOT"
"""Root of the user's code, where the sandbox shares a file system with the flow (``runner="process"``)."""
ENV_ORPHAN_TIMEOUT = "ZENML_MODAL_PREFECT_ORPHAN_TIMEOUT"
"""Seconds after which the program in a sandbox ends without a sign of life of its flow; unset, it never does so."""
ENV_ORCHESTRATES = "ZENML_MODAL_PREFECT_ORCHESTRATES"
"""The snapshot of the dynamic pipeline whose function runs here; set by the program itself."""
ENV_CALLER_TIMEOUT = "ZENML_MODAL_PREFECT_CALLER_TIMEOUT"
"""The same for a step operator's sandbox, without a sign of life of whoever called the operator."""
ENV_MODAL_SANDBOX_ID = "MODAL_SANDBOX_ID"
"""Set by Modal in every sandbox; the process runner sets it too."""

ENV_TRACE = ("TRACEPARENT", "TRACESTATE")
"""The trace that goes on in a process, as W3C's headers of these names have it; OpenTelemetry's own names."""

# Prefect events of a step's life, about the step as a resource.
EVENT_STARTED = "zenml.step.started"
EVENT_RETRIED = "zenml.step.retried"
EVENT_LOST = "zenml.step.lost"
EVENT_FAILED = "zenml.step.failed"
EVENT_FINISHED = "zenml.step.finished"
LABEL_GPU = "zenml.gpu"
"""A label of the resource, only where the step has a GPU: ``2 x A100``."""
LABEL_STACK = "zenml.stack"
ROLE_RUN = "zenml-run"
"""How the ZenML run is related to such an event."""

# Attributes of OpenTelemetry's spans, and labels of what a Prefect event is about.
SPAN_PIPELINE = "zenml.pipeline"
SPAN_RUN_ID = "zenml.run.id"
SPAN_SNAPSHOT_ID = "zenml.snapshot.id"
SPAN_STEP = "zenml.step"
SPAN_ATTEMPT = "zenml.step.attempt"
SPAN_FLOW_RUN_ID = "prefect.flow_run.id"
SPAN_TASK_RUN_ID = "prefect.task_run.id"
SPAN_SANDBOX_ID = "modal.sandbox.id"
SPAN_SANDBOX_END = "modal.sandbox.end"

# ZenML metadata.
METADATA_ORCHESTRATOR_URL = "orchestrator_url"
METADATA_SANDBOX_ID = "modal_sandbox_id"
METADATA_SANDBOX_URL = "modal_sandbox_url"
METADATA_TASK_RUN_ID = "prefect_task_run_id"
METADATA_FLOW_ALIVE = "prefect_flow_alive_at"
"""Of a run: when its flow last said that it is at work (:mod:`bridge.cleanup.lease`)."""
METADATA_ASKED = "modal_prefect_asked"
"""Of a step run: that its dynamic pipeline asks the flow for a sandbox (:mod:`bridge.dynamic_pipelines.asks`)."""
METADATA_COMMAND_END = "modal_prefect_command_end"
"""Of such a step run that is a command: the status that follows from how its sandbox ended."""
METADATA_CALLER_ALIVE = "modal_prefect_caller_alive_at"
"""Of a step run that a step operator carries out: when whoever called the operator last said that it waits."""
METADATA_DEPLOYMENT_ID = "prefect_deployment_id"
"""Of a schedule: the Prefect deployment that has it, whatever its pipeline is called by now."""

STEP_OPERATOR_IMAGE_KEY = "modal_prefect_step_operator"
"""Under which a snapshot's build keeps the images of steps that the step operator runs."""

BUILT_IMAGE = "modal://"
"""Before the id of an image that Modal has built; no reference of a registry begins like this."""

# Sandbox tags.
TAG_RUN_ID = "zenml_run_id"
TAG_PIPELINE = "zenml_pipeline"
TAG_SERVER = "zenml_server"
TAG_STACK = "zenml_stack"
TAG_STEP = "zenml_step"
TAG_STEP_OPERATOR = "zenml_step_operator"
"""Of a sandbox that a step operator made: the operator's name."""
TAG_STEP_RUN_ID = "zenml_step_run_id"
"""Of such a sandbox: the step run that it carries out."""
TAG_FLOW_RUN_ID = "prefect_flow_run_id"
TAG_SANDBOX = "zenml_sandbox"
"""The sandbox's own name: Modal's listings don't bring it back."""

TAG_ZENML = "zenml"
"""Prefect's, of every flow run and deployment of a pipeline."""
TAG_SWEEP = "zenml-sweep"
"""Prefect's, of the deployment of the sweep (``prefect.yaml``)."""

# Parameters of the flow.
PARAMETER_SNAPSHOT_ID = "snapshot_id"
PARAMETER_RUN_ID = "run_id"

# Names of Prefect's states beyond Prefect's own.
STATE_CACHED = "Cached"
STATE_SKIPPED = "Skipped"
STATE_NOT_RUN = "NotRun"
STATE_PAUSED = "Paused"
"""Of the orchestration's task run: its sandbox has ended, and its ZenML run waits for an answer."""

MODAL_NAME_LENGTH = 64
"""Longest name Modal takes (modal/_utils/name_utils.py: fewer than 65 of letters, digits, ``-_.``)."""
MODAL_TAG_LENGTH = 63
PREFECT_NAME_LENGTH = 200

_HOST = "zenml-host-"
_OUTPUT, _ATTEMPT = "bridge.sandbox.", "bridge.attempt."
_HASH_LENGTH = 10
_NOT_MODAL = re.compile(r"[^A-Za-z0-9\-_.]+")
_MODAL_APP_ID = re.compile(r"ap-[A-Za-z0-9]{22}")
_NOT_ARTIFACT = re.compile(r"[^a-z0-9]+")
_MARKDOWN = re.compile(r"[\\`*_\[\]<>&!|~]")
"""What Markdown would take for more than text, in the middle of a line."""
_NOT_PREFECT = re.compile(r"[/%&<>\x00-\x1f\x7f]+")  # prefect/utilities/names.py: BANNED_CHARACTERS


def sandbox_page(sandbox_id: str) -> str:
    """Return the page of a sandbox of Modal's, as its SDK makes it (modal/sandbox.py, ``get_dashboard_url``)."""
    return f"https://modal.com/id/{sandbox_id}"


def _fit(name: str, unwanted: re.Pattern[str], length: int) -> str:
    slug = unwanted.sub("-", name)
    if slug == name and 0 < len(name) <= length and not _looks_hashed(name) and not _reserved(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
    kept = slug[: length - _HASH_LENGTH - 2].strip("-.")
    return f"{kept or 'x'}--{digest}"


def _looks_hashed(name: str) -> bool:
    # A name that already ends like one of our slugs is hashed as well: otherwise somebody could name a
    # pipeline exactly like the slug of another one, and the two would meet. Two dashes: people end names in one dash
    # and digits, with the time or a part of a UUID.
    return re.search(rf"--[0-9a-f]{{{_HASH_LENGTH}}}$", name) is not None


def _reserved(name: str) -> bool:
    # Modal takes nothing for a name that looks like the id of an app (modal/_utils/name_utils.py: is_app_id).
    return _MODAL_APP_ID.fullmatch(name) is not None


def modal_name(name: str) -> str:
    """Return ``name`` if Modal takes it, else a slug with a hash of it; different names never meet."""
    return _fit(name, _NOT_MODAL, MODAL_NAME_LENGTH)


def modal_tag(value: str) -> str:
    """Return ``value`` as the value of a Modal sandbox tag: itself, or a slug with a hash of it."""
    return _fit(value, _NOT_MODAL, MODAL_TAG_LENGTH)


def prefect_name(name: str) -> str:
    """Return ``name`` if Prefect takes it, else a slug with a hash of it; different names never meet."""
    return _fit(name, _NOT_PREFECT, PREFECT_NAME_LENGTH)


def url_segment(name: str) -> str:
    """Return ``name`` as one segment of a URL's path: clients put names into URLs as they are.

    Two dots alone would be the segment above, however they are quoted elsewhere.
    """
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


def markdown_text(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, inside a link's text too."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def app_name(pipeline: str) -> str:
    """Return the name of the Modal app of a pipeline, kept between its runs."""
    return modal_name(f"zenml-{pipeline}")


def sandbox_name(run_id: str, step: str | None, attempt: int, infrastructure_attempt: int) -> str:
    """Return the name of the sandbox of one attempt: the key by which a repeated create finds it again.

    A hash, since run id and step name together don't fit into Modal's 64 characters. ``step`` is None for
    the one sandbox of ``pipeline`` mode. Both attempts count from 1.
    """
    key = f"{run_id}\0{step if step is not None else ''}\0{step is None}\0{attempt}\0{infrastructure_attempt}"
    return "zenml-" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def built_image(image_id: str) -> str:
    """Return the reference, as a build in ZenML has it, of an image that Modal has built."""
    return f"{BUILT_IMAGE}{image_id}"


def built_image_id(reference: str) -> str | None:
    """Return Modal's id of such an image; None for an image of a registry."""
    return reference.removeprefix(BUILT_IMAGE) if reference.startswith(BUILT_IMAGE) else None


def operated_name(step_run_id: str) -> str:
    """Return the name of the sandbox in which a step operator carries out a step run.

    One for all its sandboxes, which follow each other: whoever takes up the step run finds the one that runs.
    """
    return sandbox_name(step_run_id, "step operator", 1, 1)


def isolated_name(step_run_id: str) -> str:
    """Return the name of the sandbox of an isolated step run of a dynamic pipeline; one for all, as above."""
    return sandbox_name(step_run_id, "isolated", 1, 1)


def isolated_task_run_id(flow_run_id: str, step_run_id: str) -> uuid.UUID:
    """Return the id of the Prefect task run of an isolated step run: ZenML's retries are step runs of their own."""
    return uuid.uuid5(uuid.UUID(flow_run_id), f"step run {step_run_id}")


def task_run_id(flow_run_id: str, step: str | None) -> uuid.UUID:
    """Return the id of a step's Prefect task run: the same in every process that works on the flow run.

    ``step`` is None for the one task run of ``pipeline`` mode.
    """
    return uuid.uuid5(uuid.UUID(flow_run_id), f"step {step}" if step is not None else "pipeline")


def host_name() -> str:
    """Return a name for a sandbox in which steps take turns; no two are equal."""
    return f"{_HOST}{uuid.uuid4().hex}"


def is_host_name(name: str) -> bool:
    """Whether a sandbox of this name is one in which steps take turns."""
    return name.startswith(_HOST)


def host_socket(name: str) -> str:
    """Return the file name of the socket of the step host in the sandbox of that name."""
    return f"{name}.sock"


def output_logger(key: str) -> str:
    """Return the logger whose name the output of an attempt has in Prefect's logs; ``key`` is its sandbox's name."""
    return f"{_OUTPUT}{key}"


def attempt_logger(key: str) -> str:
    """Return the logger whose name the line has that says where an attempt runs."""
    return f"{_ATTEMPT}{key}"


def attempt_of_logger(logger: str) -> tuple[str, bool]:
    """Return the attempt that a logger stands for, "" for none, and whether its records are output."""
    for prefix in (_OUTPUT, _ATTEMPT):
        if logger.startswith(prefix):
            return logger.removeprefix(prefix), prefix == _OUTPUT
    return "", False


def run_resource(run_id: str) -> str:
    """Return the id of a ZenML run as a resource of Prefect's events."""
    return f"zenml.run.{run_id}"


def step_resource(run_id: str, step: str) -> str:
    """Return the id of a step of a ZenML run as a resource of Prefect's events."""
    return f"{run_resource(run_id)}.step.{step}"


def artifact_key(kind: str, pipeline: str) -> str:
    """Return the key of a Prefect artifact: the same for all runs of a pipeline, whose history the UI then shows.

    Prefect takes lower-case letters, digits and dashes only (prefect/types/names.py: ``ArtifactKey``).
    """
    return f"zenml-{kind}-" + _fit(pipeline, _NOT_ARTIFACT, 100).lower()


def flow_run_tags(run_id: str, pipeline: str, stack: str, user: str | None) -> list[str]:
    """Return the Prefect tags of a flow run."""
    tags = [TAG_ZENML, f"zenml_run_id:{run_id}", f"zenml_pipeline:{pipeline}", f"zenml_stack:{stack}"]
    return [*tags, f"zenml_user:{user}"] if user else tags


def stack_tags(stack: str) -> list[str]:
    """Return the Prefect tags that all flow runs of a stack have."""
    return [TAG_ZENML, f"zenml_stack:{stack}"]


def run_id_of_tags(tags: Iterable[str]) -> str | None:
    """Return the id of the ZenML run that :func:`flow_run_tags` wrote down, None if there is none."""
    return next((tag.partition(":")[2] for tag in tags if tag.startswith("zenml_run_id:")), None)


def deployment_tags(pipeline: str) -> list[str]:
    """Return the Prefect tags of a pipeline's deployment."""
    return [TAG_ZENML, f"zenml_pipeline:{pipeline}"]

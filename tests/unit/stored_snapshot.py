"""A program: registers the flavour in a fresh store, compiles a pipeline, stores its snapshot and prints it."""

from __future__ import annotations

import sys

from zenml import pipeline, step
from zenml.client import Client
from zenml.config import ResourceSettings
from zenml.config.compiler import Compiler
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.config.retry_config import StepRetryConfig
from zenml.enums import StackComponentType
from zenml.models import PipelineRequest, PipelineSnapshotRequest
from zenml.stack import Stack

from bridge import ModalPrefectOrchestratorSettings
from bridge.names import ORCHESTRATOR_FLAVOR_SOURCE

COMPONENT = {
    "runner": "process",
    "timeout": "500",
    "tags": '{"team": "ml"}',
    "token_id": "ak-public",
    "token_secret": "as-thesecret",
}


@step(
    settings={
        "orchestrator": ModalPrefectOrchestratorSettings(gpu=["A100", "H100"], tags={"kind": "gpu"}),
        "resources": ResourceSettings(gpu_count=2),
    },
    retry=StepRetryConfig(max_retries=3, delay=10),
)
def train() -> int:
    return 1


@step(settings={"orchestrator.modal-prefect": {"timeout": 7, "gpu": None}}, enable_cache=False)
def evaluate(score: int) -> int:
    return score


@pipeline(
    settings={
        "orchestrator": ModalPrefectOrchestratorSettings(max_parallelism=3, execution_mode="per_step"),
        "resources": ResourceSettings(cpu_count=2, memory="1GB"),
    }
)
def training() -> None:
    evaluate(train())


def main() -> None:
    client = Client()
    client.create_flavor(ORCHESTRATOR_FLAVOR_SOURCE, StackComponentType.ORCHESTRATOR)
    client.create_stack_component(
        name="orchestrator",
        flavor="modal-prefect",
        component_type=StackComponentType.ORCHESTRATOR,
        configuration=COMPONENT,
    )
    components = {StackComponentType.ORCHESTRATOR: "orchestrator", StackComponentType.ARTIFACT_STORE: "default"}
    stack = client.create_stack("prod", components)
    training.prepare()
    compiled = Compiler().compile(training, Stack.from_model(stack), PipelineRunConfiguration())
    project = client.active_project.id
    owner = client.zen_store.create_pipeline(PipelineRequest(name="training", project=project))
    request = PipelineSnapshotRequest(**dict(compiled), project=project, stack=stack.id, pipeline=owner.id)
    stored = client.zen_store.create_snapshot(request)
    sys.stdout.write(client.zen_store.get_snapshot(stored.id).model_dump_json() + "\n")


if __name__ == "__main__":
    main()

"""A ZenML orchestrator that runs nothing: tests submit with it and then start ``bridge.host`` themselves."""

from __future__ import annotations

import os
from uuid import uuid4

from zenml.client import Client
from zenml.enums import ExecutionMode
from zenml.models import PipelineRunUpdate
from zenml.orchestrators import BaseOrchestrator, BaseOrchestratorConfig, BaseOrchestratorFlavor

from bridge import names


class HostTestOrchestratorConfig(BaseOrchestratorConfig):
    @property
    def handles_step_retries(self) -> bool:
        return True

    @property
    def supports_client_side_caching(self) -> bool:
        return False


class HostTestOrchestrator(BaseOrchestrator):
    def get_orchestrator_run_id(self) -> str:
        return os.environ[names.ENV_FLOW_RUN_ID]

    @property
    def supported_execution_modes(self):
        return list(ExecutionMode)

    def submit_pipeline(self, snapshot, stack, base_environment, step_environments, placeholder_run=None):
        Client().zen_store.update_run(placeholder_run.id, PipelineRunUpdate(orchestrator_run_id=str(uuid4())))


class HostTestFlavor(BaseOrchestratorFlavor):
    @property
    def name(self) -> str:
        return "host-test"

    @property
    def config_class(self):
        return HostTestOrchestratorConfig

    @property
    def implementation_class(self):
        return HostTestOrchestrator

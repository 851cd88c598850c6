"""The ZenML side of the orchestrator: validate, submit, answer ZenML's questions.

Imported in every sandbox, since ZenML loads the active stack there: neither Modal nor Prefect at import time.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast
from uuid import UUID

from zenml.client import Client
from zenml.config.build_configuration import BuildConfiguration
from zenml.config.global_config import GlobalConfiguration
from zenml.constants import ENV_ZENML_LOCAL_STORES_PATH, METADATA_ORCHESTRATOR_RUN_ID
from zenml.enums import ExecutionMode
from zenml.logger import get_logger
from zenml.metadata.metadata_types import MetadataType, Uri
from zenml.models import PipelineRunUpdate
from zenml.orchestrators import ContainerizedOrchestrator, SubmissionResult
from zenml.orchestrators.exceptions import PipelineSubmissionError
from zenml.stack import Stack, StackValidator
from zenml.utils import source_utils

from bridge import names
from bridge.errors import BridgeError, InvalidSettings
from bridge.plan import Plan
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectOrchestratorSettings
from bridge.translate import NewSnapshot, Translation, dynamic_pipeline, translate
from bridge.validation import check_stack, refuse_component, refuse_run

if TYPE_CHECKING:
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import PipelineRunResponse, PipelineSnapshotBase, PipelineSnapshotResponse

logger = get_logger(__name__)


class ModalPrefectOrchestrator(ContainerizedOrchestrator):
    """Runs ZenML pipelines as Prefect flows, their steps in Modal sandboxes."""

    @property
    def config(self) -> ModalPrefectOrchestratorConfig:
        """The component's configuration."""
        return cast(ModalPrefectOrchestratorConfig, self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """The settings that pipelines and steps may set."""
        return ModalPrefectOrchestratorSettings

    @property
    def supported_execution_modes(self) -> list[ExecutionMode]:
        """All of ZenML's."""
        return [ExecutionMode.FAIL_FAST, ExecutionMode.STOP_ON_FAILURE, ExecutionMode.CONTINUE_ON_FAILURE]

    @property
    def supports_dynamic_pipelines(self) -> bool:
        """Never. ZenML asks when a dynamic pipeline is called.

        Raises ``NotTranslatable``: ZenML's own error doesn't say what to do.
        """
        raise dynamic_pipeline()

    @property
    def validator(self) -> StackValidator:
        """Whether the stack's components can be reached from where its sandboxes run."""
        return StackValidator(custom_validation_function=lambda stack: check_stack(stack, self.config))

    def get_docker_builds(self, snapshot: PipelineSnapshotBase) -> list[BuildConfiguration]:
        """The images to build: none for local processes, which run in this environment.

        Called before any image is built, so settings are checked here first.
        """
        self._translate(
            NewSnapshot(snapshot.is_dynamic, snapshot.pipeline_configuration, snapshot.step_configurations), ""
        )
        return [] if self.config.runner == "process" else super().get_docker_builds(snapshot)

    def plan(self, snapshot: PipelineSnapshotResponse) -> Plan:
        """Translate a snapshot. Raises ``InvalidSettings`` or ``NotTranslatable``; warns of what can't be honoured."""
        translation = self._translate(snapshot, snapshot.stack.name if snapshot.stack else "")
        for warning in translation.warnings:
            logger.warning("%s", warning)
        return translation.plan

    def _translate(self, snapshot: PipelineSnapshotResponse | NewSnapshot, stack_name: str) -> Translation:
        # Only what the component sets, since its defaults aren't its wishes; and no token: reading one that is a
        # reference to a secret asks the server for it.
        settings = self.config.model_fields_set & set(ModalPrefectOrchestratorSettings.model_fields)
        component: dict[str, object] = {name: getattr(self.config, name) for name in settings}
        component["runner"] = self.config.runner
        translation = translate(snapshot, component=component, component_name=self.name, stack_name=stack_name)
        refuse_component(self.config, self.name)
        refuse_run(translation.settings, translation.plan)
        return translation

    def submit_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Make the Prefect flow run of a ZenML run; waiting for it runs it in this process.

        Raises ``PipelineSubmissionError`` for whatever is wrong, before anything is started. The environments that
        ZenML hands over are left alone: they hold tokens, and the flow mints its own where it runs.
        """
        del base_environment, step_environments
        from bridge import submission

        try:
            plan = self.plan(snapshot)
            if placeholder_run is None:
                raise InvalidSettings(
                    "schedule",
                    snapshot.schedule.name if snapshot.schedule else None,
                    "a schedule needs a Prefect work pool whose worker runs it",
                    "Set `work_pool` on the orchestrator",
                )
            with submission.prefect_settings(self.config):
                submission.check_runner(self.config, stack, plan)
                flow_run, url = submission.create_flow_run(snapshot, placeholder_run, plan)
            Client().zen_store.update_run(placeholder_run.id, PipelineRunUpdate(orchestrator_run_id=str(flow_run.id)))
        except BridgeError as error:
            raise PipelineSubmissionError(str(error)) from error

        def wait() -> None:
            with submission.prefect_settings(self.config):
                submission.run_here(flow_run, plan)

        metadata: dict[str, MetadataType] = {METADATA_ORCHESTRATOR_RUN_ID: str(flow_run.id)}
        if url is not None:
            metadata[names.METADATA_ORCHESTRATOR_URL] = Uri(url)
            logger.info("Prefect flow run: %s", url)
        return SubmissionResult(wait_for_completion=wait, metadata=metadata)

    def local_environment(self) -> dict[str, str]:
        """What a sandbox on this machine needs besides: where local artifacts and the user's code are."""
        if self.config.runner != "process":
            return {}
        return {
            ENV_ZENML_LOCAL_STORES_PATH: GlobalConfiguration().local_stores_path,
            names.ENV_SOURCE_ROOT: source_utils.get_source_root(),
        }

    def get_orchestrator_run_id(self) -> str:
        """The Prefect flow-run id, in a sandbox. Raises ``RuntimeError`` outside of one."""
        try:
            return os.environ[names.ENV_FLOW_RUN_ID]
        except KeyError:
            raise RuntimeError(
                f"{names.ENV_FLOW_RUN_ID} is not set: this code runs outside a sandbox of the flavour `{names.FLAVOR}`."
            ) from None

    def get_pipeline_run_metadata(self, run_id: UUID) -> dict[str, MetadataType]:
        """The metadata of a run, asked for in a sandbox."""
        return {METADATA_ORCHESTRATOR_RUN_ID: self.get_orchestrator_run_id()}

    def get_step_run_metadata(self, info: StepRunInfo) -> dict[str, MetadataType]:
        """Where a step runs, asked for in its sandbox when it starts."""
        found: dict[str, MetadataType] = {}
        if sandbox := os.environ.get(names.ENV_MODAL_SANDBOX_ID):
            found[names.METADATA_SANDBOX_ID] = sandbox
        if task_run := os.environ.get(names.ENV_TASK_RUN_ID):
            found[names.METADATA_TASK_RUN_ID] = task_run
        return found

"""The ZenML side of the orchestrator: validate, submit, answer ZenML's questions.

Imported in every sandbox, since ZenML loads the active stack there: neither Modal nor Prefect at import time.
"""

from __future__ import annotations

import os
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, cast
from uuid import UUID

from zenml.client import Client
from zenml.config.build_configuration import BuildConfiguration
from zenml.constants import METADATA_ORCHESTRATOR_RUN_ID
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.logger import get_logger
from zenml.metadata.metadata_types import MetadataType, Uri
from zenml.orchestrators import ContainerizedOrchestrator, SubmissionResult
from zenml.orchestrators.exceptions import PipelineSubmissionError
from zenml.orchestrators.publish_utils import publish_step_run_metadata
from zenml.stack import Stack, StackValidator
from zenml.utils import source_utils

from bridge import names, tracing
from bridge.errors import BridgeError
from bridge.local import local_environment
from bridge.plan import Plan
from bridge.planning import ignored
from bridge.planning.layers import ComponentSettings
from bridge.planning.network import check_ways_to_zenml
from bridge.planning.one_sandbox import refuse_images
from bridge.planning.translate import NewSnapshot, Translation, translate
from bridge.planning.validation import check_stack, modal_builds, refuse_run
from bridge.said_once import SaidOnce
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectOrchestratorSettings
from bridge.submitting import ahead
from bridge.zenml_side.run_status import bind_run
from bridge.zenml_side.sandbox_metadata import sandbox_metadata

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import (
        PipelineRunResponse,
        PipelineSnapshotBase,
        PipelineSnapshotResponse,
        ScheduleResponse,
        ScheduleUpdate,
        StepRunResponse,
    )

    from bridge.dynamic_pipelines.isolated import Layer
    from bridge.images.image_builds import ImageBuilds
    from bridge.submitting.submission import Pool

logger = get_logger(__name__)

_of_children = SaidOnce()


class ModalPrefectOrchestrator(ContainerizedOrchestrator):
    """Runs ZenML pipelines as Prefect flows, their steps in Modal sandboxes."""

    _images: ImageBuilds | None = None

    @cached_property
    def _asked_for(self) -> set[UUID]:
        """Isolated step runs for which a sandbox was asked for, as this process knows."""
        return set()

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
    def run_init_cleanup_at_step_level(self) -> bool:
        """Whether the init and cleanup hooks belong to a step: asked in the process that runs it.

        Inline steps of a dynamic pipeline share the process of its function, which runs both itself: the end of one
        would take from all others what the init hook made.
        """
        return names.ENV_ORCHESTRATES not in os.environ

    @classmethod
    def run_init_hook(cls, snapshot: PipelineSnapshotResponse) -> None:
        """ZenML's, with the snapshot that a step's process has: the one that is handed in would be loaded whole.

        The runner of a dynamic pipeline calls it before its function.
        """
        from bridge.host.run_of_step import loaded

        super().run_init_hook(loaded(snapshot))
        if names.ENV_ORCHESTRATES in os.environ:
            from bridge.host import unmade_retries

            unmade_retries.watch()

    @classmethod
    def run_cleanup_hook(cls, snapshot: PipelineSnapshotResponse) -> None:
        """The same at a step's end, and at that of a dynamic pipeline's function."""
        from bridge.host.run_of_step import loaded

        if names.ENV_ORCHESTRATES in os.environ:
            from bridge.host import unmade_retries

            unmade_retries.release()
        super().run_cleanup_hook(loaded(snapshot))

    @property
    def validator(self) -> StackValidator:
        """Whether the stack's components can be reached from where its sandboxes run."""
        return StackValidator(custom_validation_function=lambda stack: check_stack(stack, self.config))

    def get_docker_builds(self, snapshot: PipelineSnapshotBase) -> list[BuildConfiguration]:
        """The images to build: none for local processes, which run in this environment.

        Called before any image is built, so settings are checked here first. Where Modal builds them, it does so now,
        and ZenML is told of finished ones. Raises ``InvalidSettings``, ``ImageNotBuilt``, ``RunnerError``.
        """
        try:
            return self._builds(snapshot)
        except BridgeError:
            self._warn_of_schedule(snapshot.pipeline_configuration.name)
            raise

    def _builds(self, snapshot: PipelineSnapshotBase) -> list[BuildConfiguration]:
        if not (snapshot.is_dynamic or snapshot.step_configurations) and snapshot.pipeline_configuration.steps_to_skip:
            return []  # a replay that skips all steps
        translation = self._translate(
            NewSnapshot(snapshot.is_dynamic, snapshot.pipeline_configuration, snapshot.step_configurations), ""
        )
        imports = ahead.imports(self.config.runner)
        if self.config.runner == "process":
            return []
        if self.config.work_pool is None:  # else it is the worker's address of ZenML that sandboxes are told
            check_ways_to_zenml(translation.plan, Client().zen_store.url)
        builds = super().get_docker_builds(snapshot)
        from bridge.images.image_definition import UNUSED

        stack = Client().active_stack
        by_modal = modal_builds(self.config, stack)
        refuse_images(translation.plan, builds, UNUSED if by_modal else ())
        if not by_modal:
            return builds
        imports.result()
        return self._built(builds, stack, translation, snapshot.pipeline_configuration)

    def _warn_of_schedule(self, pipeline: str) -> None:
        # ZenML makes a schedule before it asks for builds, and doesn't say here that it did.
        from bridge.submitting.scheduled import runs_nothing

        if (schedule := runs_nothing(pipeline, self.id)) is not None:
            logger.warning(
                "ZenML has the schedule `%s` of this pipeline, which runs nothing: it has no snapshot. Delete it "
                "before you try again: zenml pipeline schedule delete %s",
                schedule.name,
                schedule.id,
            )

    def _built(
        self, builds: list[BuildConfiguration], stack: Stack, translation: Translation, submission: object
    ) -> list[BuildConfiguration]:
        from bridge.images.image_builds import ImageBuilds
        from bridge.submitting.submission import ask_runner

        if self._images is None:
            self._images = ImageBuilds()
        plan, elsewhere = translation.plan, translation.settings.modal_environment
        environments = {step.name: step.sandbox.modal_environment for step in plan.steps}
        return self._images.built(
            builds,
            stack,
            names.app_name(plan.pipeline),
            self.config.build_secrets,
            lambda step: environments.get(step, elsewhere) if step is not None else elsewhere,
            partial(ask_runner, self.config, stack),
            submission,
        )

    def plan(self, snapshot: PipelineSnapshotResponse) -> Plan:
        """Translate a snapshot. Raises ``InvalidSettings`` or ``NotTranslatable``; warns of nothing."""
        return self.translation(snapshot).plan

    def translation(self, snapshot: PipelineSnapshotResponse) -> Translation:
        """The same, with the settings of the run, and what of the user's wishes is not used."""
        return self._translate(snapshot, snapshot.stack.name if snapshot.stack else "")

    def announce(self, snapshot: PipelineSnapshotResponse, translation: Translation) -> None:
        """Warn of what is not used of a run's settings. Once a run, by whoever begins it: many read its plan."""
        for warning in (*translation.warnings, *ignored.of_run(snapshot, translation.plan, self.config)):
            logger.warning("%s", warning)

    def run_settings(self, snapshot: PipelineSnapshotResponse) -> ModalPrefectOrchestratorSettings:
        """The settings of a run of this snapshot. Raises what :meth:`plan` does."""
        return self._translate(snapshot, "").settings

    def _translate(self, snapshot: PipelineSnapshotResponse | NewSnapshot, stack_name: str) -> Translation:
        component = ComponentSettings.of(self.config)
        translation = translate(snapshot, component=component, component_name=self.name, stack_name=stack_name)
        refuse_run(translation.settings, self.config.work_pool)
        return translation

    def layer(self, snapshot: PipelineSnapshotResponse, root: PipelineSnapshotResponse | None = None) -> Layer:
        """What lies beneath the settings of a step of a dynamic pipeline; ``root`` is the one that is run, where
        ``snapshot`` may be that of a child pipeline."""
        from bridge.dynamic_pipelines.isolated import Layer

        component, configuration = ComponentSettings.of(self.config), snapshot.pipeline_configuration
        if root is None or root.id == snapshot.id:
            return Layer(component, self.name, configuration)
        return Layer(component, self.name, root.pipeline_configuration, configuration)

    def submit_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Make the Prefect flow run of a ZenML run, or the Prefect schedule of a ZenML schedule.

        Without a work pool, waiting for the run runs it in this process. The environments that ZenML hands over are
        left alone: they hold tokens, and the flow mints its own where it runs.

        Raises ``PipelineSubmissionError`` for whatever is wrong, before anything is started: only for this error does
        ZenML take back a schedule.
        """
        del base_environment, step_environments
        return self._submit_any(snapshot, stack, placeholder_run)

    def submit_dynamic_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,
        environment: dict[str, str],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """The same for a dynamic pipeline, whose function runs in a sandbox."""
        del environment
        return self._submit_any(snapshot, stack, placeholder_run)

    def _submit_any(
        self, snapshot: PipelineSnapshotResponse, stack: Stack, placeholder_run: PipelineRunResponse | None
    ) -> SubmissionResult | None:
        ahead.imports(self.config.runner).result()
        from bridge.flow_run.limits import check_limits
        from bridge.prefect_side.prefect_api import prefect_settings

        try:
            translation = self.translation(snapshot)
            if placeholder_run is None or placeholder_run.orchestrator_run_id is None:  # else it goes on
                self.announce(snapshot, translation)
            about = {
                names.SPAN_PIPELINE: translation.plan.pipeline,
                names.SPAN_SNAPSHOT_ID: str(snapshot.id),
                **({names.SPAN_RUN_ID: str(placeholder_run.id)} if placeholder_run else {}),
            }
            with prefect_settings(self.config), tracing.span(f"submit {translation.plan.pipeline}", about):
                check_limits(translation.plan)
                if placeholder_run is None:
                    return self._schedule(snapshot, translation)
                return self._submit(snapshot, stack, placeholder_run, translation)
        except BridgeError as error:
            raise PipelineSubmissionError(str(error)) from error
        except Exception as error:
            raise PipelineSubmissionError(
                f"The pipeline can't be submitted: {type(error).__name__}: {error}"
            ) from error

    def _schedule(self, snapshot: PipelineSnapshotResponse, translation: Translation) -> SubmissionResult:
        from bridge.submitting import submission

        deployment_id, url = submission.submit_schedule(self._pool(translation), snapshot, translation.plan)
        metadata: dict[str, MetadataType] = {names.METADATA_DEPLOYMENT_ID: str(deployment_id)}
        if url is not None:
            metadata[names.METADATA_ORCHESTRATOR_URL] = Uri(url)
            logger.info("Prefect deployment with the schedule: %s", url)
        return SubmissionResult(metadata=metadata)

    def _submit(
        self, snapshot: PipelineSnapshotResponse, stack: Stack, run: PipelineRunResponse, translation: Translation
    ) -> SubmissionResult:
        from bridge.submitting import submission

        plan, work_pool = translation.plan, self.config.work_pool
        if work_pool is None or self.config.token_id is not None:
            # Else the worker has the account, and this machine needn't.
            submission.check_runner(self.config, stack, plan)
        if run.orchestrator_run_id is not None:
            return self._go_on(run, translation)
        if work_pool is None:
            flow_run, url = submission.create_flow_run(snapshot, run, plan)
        else:
            flow_run, url = submission.submit_to_pool(self._pool(translation), snapshot, run, plan)
        try:
            tracing.note({names.SPAN_FLOW_RUN_ID: str(flow_run.id)})
            bind_run(run, str(flow_run.id))
        except BaseException:  # Ctrl-C too: a worker would carry it out
            submission.withdraw(flow_run)
            raise
        metadata: dict[str, MetadataType] = {METADATA_ORCHESTRATOR_RUN_ID: str(flow_run.id)}
        if url is not None:
            metadata[names.METADATA_ORCHESTRATOR_URL] = Uri(url)
            logger.info("Prefect flow run: %s", url)
        trace = tracing.environment()
        wait = partial(self._wait, run, flow_run, plan, trace) if translation.settings.synchronous else None
        return SubmissionResult(wait_for_completion=wait, metadata=metadata)

    def _go_on(self, run: PipelineRunResponse, translation: Translation) -> SubmissionResult:
        """Go on with a run of a dynamic pipeline that was paused, or failed and is tried again."""
        from bridge.submitting import submission

        flow_run, url = submission.go_on(run)
        if url is not None:
            logger.info("Prefect flow run: %s", url)
        by_worker = flow_run.deployment_id is not None
        wait = partial(self._wait, run, flow_run, translation.plan, tracing.environment())
        return SubmissionResult(wait_for_completion=wait if translation.settings.synchronous or not by_worker else None)

    def _wait(self, run: PipelineRunResponse, flow_run: FlowRun, plan: Plan, trace: dict[str, str]) -> None:
        from bridge.prefect_side.prefect_api import prefect_settings
        from bridge.submitting import submission
        from bridge.submitting.waiting import Waiting
        from bridge.watching.followed import FollowedSteps
        from bridge.watching.terminal import show_waiting

        with prefect_settings(self.config), tracing.following(trace):
            if flow_run.deployment_id is None:
                submission.run_here(flow_run, plan)
            else:
                pool = flow_run.work_pool_name or self.config.work_pool or ""
                steps = FollowedSteps(flow_run.id, plan.pipeline)
                with show_waiting(run.name):
                    Waiting(run, flow_run.id, pool, steps, logger.info).until_done()

    def _pool(self, translation: Translation) -> Pool:
        from bridge.submitting.submission import Pool

        environment = {}
        if self.config.runner == "process":
            # The worker's own folder isn't where the user's code is, which local processes import.
            environment[names.ENV_SOURCE_ROOT] = source_utils.get_source_root()
        return Pool(self.name, self.config, translation.settings, environment)

    def fetch_status(
        self, run: PipelineRunResponse, include_steps: bool = False
    ) -> tuple[ExecutionStatus | None, dict[str, ExecutionStatus] | None]:
        """What Prefect says of a run, with what follows from it for the steps that ZenML believes unfinished.

        Raises ``PrefectUnavailable`` rather than guess.
        """
        from bridge.prefect_side.prefect_api import prefect_settings
        from bridge.submitting import status

        with prefect_settings(self.config):
            return status.fetch(run, self, include_steps)

    def _stop_run(self, run: PipelineRunResponse, graceful: bool = False) -> None:
        """End a run that ZenML has made STOPPING; graceful leaves that to a flow that is at work, which sees it.

        Raises ``PrefectUnavailable``, ``RunnerUnavailable``.
        """
        from bridge.prefect_side.prefect_api import prefect_settings
        from bridge.submitting import stop_run

        with prefect_settings(self.config):
            stop_run.stop(run, self, graceful=graceful)

    def update_schedule(self, schedule: ScheduleResponse, update: ScheduleUpdate) -> None:
        """Change a schedule's cron expression, or whether it is active.

        Raises ``InvalidSettings`` if Prefect can't or has no such schedule, ``PrefectUnavailable``.
        """
        from bridge.prefect_side.prefect_api import prefect_api, prefect_settings
        from bridge.submitting import schedule_store

        with prefect_settings(self.config):
            schedule_store.refuse_no_server(schedule)
            with prefect_api() as client:
                schedule_store.update_schedule(client, self.name, schedule, update)

    def delete_schedule(self, schedule: ScheduleResponse) -> None:
        """Delete a schedule in Prefect, if it is there; else warn where it may be in another one.

        Raises ``PrefectUnavailable``, also where no server is configured and it was made on one.
        """
        from bridge.prefect_side.prefect_api import prefect_api, prefect_settings
        from bridge.submitting import schedule_store

        with prefect_settings(self.config):
            schedule_store.refuse_no_server(schedule)
            with prefect_api() as client:
                schedule_store.delete_schedule(client, self.name, schedule)

    def submit_isolated_step(self, step_run_info: StepRunInfo, environment: dict[str, str]) -> None:
        """Ask the flow, from the orchestration of a dynamic pipeline, for a sandbox for a step. Doesn't wait for it.

        Raises ``InvalidSettings``, ``RunNotPossible`` for a step that can't have one.
        """
        from bridge.dynamic_pipelines import asks
        from bridge.dynamic_pipelines.isolated import image_of, wishes_of
        from bridge.step_operators.single_step import check_reach

        del environment  # it holds a token; the flow has its own
        name, config, snapshot = step_run_info.pipeline_step_name, step_run_info.config, step_run_info.snapshot
        layer = self.layer(snapshot, _root())
        wishes = wishes_of(name, config, layer)  # its flow says what isn't used
        _warn_of_child(layer)
        check_reach(name, config, wishes, self.config.runner, Client().zen_store.url)
        if self.config.runner == "modal":
            image_of(name, config, snapshot)
        asks.ask(step_run_info.step_run_id, self.id)
        self._asked_for.add(step_run_info.step_run_id)

    def get_isolated_step_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """How an isolated step is: PROVISIONING, RUNNING, COMPLETED, FAILED or STOPPED; the flow publishes it.

        Raises what ZenML's store raises, rather than guess.
        """
        from bridge.dynamic_pipelines import asks

        if step_run.id not in self._asked_for:
            if not asks.see_to_it(step_run.id, self.id):
                return ExecutionStatus.FAILED
            self._asked_for.add(step_run.id)
        return asks.status_of(step_run)

    def wait_for_isolated_step(self, step_run: StepRunResponse) -> ExecutionStatus:
        """Wait for the end of an isolated step. ZenML's own looks every 16 s in the end; here nothing is far away."""
        from bridge.dynamic_pipelines import asks

        return asks.wait_for(lambda: self.get_isolated_step_status(step_run))

    def stop_isolated_step(self, step_run: StepRunResponse) -> None:
        """Stop an isolated step, which then counts as stopped; the flow sees it and ends its sandbox."""
        from bridge.zenml_side import step_runs

        step_runs.record_stopped(step_run.id)

    def prepare_step_run(self, info: StepRunInfo) -> None:
        """Refuse settings that an inline step of a dynamic pipeline can't have for itself; its span begins.

        Then say in ZenML where the step runs. Not by ``get_step_run_metadata``, which ZenML asks for when a step has
        ended (zenml/orchestrators/step_runner.py): of one that was killed nobody would know.

        Raises ``InvalidSettings``.
        """
        if names.ENV_ORCHESTRATES in os.environ:
            from bridge.dynamic_pipelines.isolated import check_inline
            from bridge.host.tracing import begin_inline

            layer = self.layer(info.snapshot, _root())
            check_inline(info.pipeline_step_name, info.config, layer)
            _warn_of_child(layer)
            begin_inline(info.pipeline_step_name, info.step_run_id)
        if where := self._where_this_process_runs():
            publish_step_run_metadata(info.step_run_id, {self.id: where})

    def cleanup_step_run(self, info: StepRunInfo, step_failed: bool) -> None:
        """The span of an inline step of a dynamic pipeline ends, once the step's own code has."""
        if names.ENV_ORCHESTRATES in os.environ:
            from bridge.host.tracing import end_inline

            end_inline(info.step_run_id, step_failed)

    def local_environment(self) -> dict[str, str]:
        """What a sandbox on this machine needs besides: where local artifacts and the user's code are."""
        return local_environment(self.config.runner)

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

    def _where_this_process_runs(self) -> dict[str, MetadataType]:
        found: dict[str, MetadataType] = {}
        if sandbox := os.environ.get(names.ENV_MODAL_SANDBOX_ID):
            found |= sandbox_metadata(sandbox, names.sandbox_page(sandbox) if self.config.runner == "modal" else None)
        if task_run := os.environ.get(names.ENV_TASK_RUN_ID):
            found[names.METADATA_TASK_RUN_ID] = task_run
        return found


def _root() -> PipelineSnapshotResponse | None:
    """The snapshot of the dynamic pipeline whose function runs in this process, whichever child a step is of."""
    snapshot_id = os.environ.get(names.ENV_ORCHESTRATES)
    return _stored(UUID(snapshot_id)) if snapshot_id is not None else None


def _warn_of_child(layer: Layer) -> None:
    """Say, once in this process, what of a child pipeline's settings is not used."""
    from bridge.dynamic_pipelines.isolated import unused_of_child

    _of_children.warn(unused_of_child(layer), logger)


@lru_cache(maxsize=1)
def _stored(snapshot_id: UUID) -> PipelineSnapshotResponse:
    return Client().zen_store.get_snapshot(snapshot_id)  # which never changes

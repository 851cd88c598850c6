"""The ZenML side of the step operator: validate, submit a step run, answer ZenML's questions about it.

Imported in every sandbox, since ZenML loads the active stack there: neither Modal nor Prefect at import time. The
process that calls it, which may itself be a sandbox of any orchestrator, needs Modal's SDK; Prefect it needs never.
"""

from __future__ import annotations

import os
from collections import defaultdict
from functools import cached_property, partial
from typing import TYPE_CHECKING, cast

from zenml.client import Client
from zenml.config.build_configuration import BuildConfiguration
from zenml.enums import ExecutionStatus
from zenml.logger import get_logger
from zenml.metadata.metadata_types import MetadataType
from zenml.orchestrators.publish_utils import publish_step_run_metadata
from zenml.stack import Stack, StackValidator
from zenml.step_operators import BaseStepOperator

from bridge import names
from bridge.errors import BridgeError, RunNotPossible
from bridge.flow_run.outcome import Diagnosis, Verdict
from bridge.local import local_environment
from bridge.planning import ignored
from bridge.planning.validation import check_operator_stack, modal_builds
from bridge.said_once import SaidOnce
from bridge.settings import ModalPrefectStepOperatorConfig, ModalPrefectStepOperatorSettings
from bridge.zenml_side.sandbox_metadata import sandbox_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from zenml.config.base_settings import BaseSettings
    from zenml.config.pipeline_configurations import PipelineConfiguration
    from zenml.config.step_configurations import StepConfiguration
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import PipelineSnapshotBase, PipelineSnapshotResponse, StepRunResponse

    from bridge.images.image_builds import ImageBuilds
    from bridge.plan import Plan
    from bridge.runners.base import Runner
    from bridge.step_operators.operated import OperatedRun
    from bridge.step_operators.operated_place import Elsewhere
    from bridge.step_operators.operating import Operating

logger = get_logger(__name__)

REQUIREMENTS = frozenset({"modal>=1.4.3,<2", "tenacity>=8.2"})
"""What a process that calls the operator needs beyond ZenML and this package."""

_OF_VERDICT = {
    Verdict.SUCCEEDED: ExecutionStatus.COMPLETED,
    Verdict.STOPPED: ExecutionStatus.STOPPED,
    Verdict.FAILED: ExecutionStatus.FAILED,
    Verdict.LOST: ExecutionStatus.FAILED,
}


class ModalPrefectStepOperator(BaseStepOperator):
    """Runs single steps in Modal sandboxes, for any orchestrator."""

    _operating: Operating | None = None
    _images: ImageBuilds | None = None
    _shared_plan: tuple[PipelineSnapshotResponse, Plan | None] | None = None
    """Of the snapshot that was asked for last: with many steps it takes a while to make."""

    @cached_property
    def _elsewhere(self) -> Elsewhere:
        """The step runs that other processes began."""
        from bridge.step_operators.operated_place import Elsewhere

        return Elsewhere(self.config, self.name, lambda: self._operations(Client().active_stack))

    @cached_property
    def _not_used(self) -> defaultdict[UUID, SaidOnce]:
        """By run, what is not used of settings: said of the first step that it is so of, in this process."""
        return defaultdict(SaidOnce)

    @property
    def config(self) -> ModalPrefectStepOperatorConfig:
        """The component's configuration."""
        return cast(ModalPrefectStepOperatorConfig, self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """The settings that pipelines and steps may set."""
        return ModalPrefectStepOperatorSettings

    @property
    def requirements(self) -> set[str]:
        """What ZenML installs into the images of a stack with this component: it may be called from one of them."""
        return set(REQUIREMENTS) if self.config.runner == "modal" else set()

    @property
    def validator(self) -> StackValidator:
        """Whether the stack's components can be reached from where its sandboxes run."""
        return StackValidator(
            custom_validation_function=lambda stack: check_operator_stack(stack, self.config, self.name)
        )

    def get_docker_builds(self, snapshot: PipelineSnapshotBase) -> list[BuildConfiguration]:
        """The image of each step that it runs: none for local processes, which run in this environment.

        Called before any image is built, so settings are checked here first. Where Modal builds them, it does so now,
        and ZenML is told of finished ones. Raises ``InvalidSettings``, ``ImageNotBuilt``, ``RunnerError``.
        """
        from bridge.step_operators.operated import check_steps

        steps = {name: step.config for name, step in snapshot.step_configurations.items()}
        own = {name: config for name, config in steps.items() if config.uses_step_operator(self.name)}
        stack = Client().active_stack
        # The worker of a work pool has an address of ZenML of its own, and its sandboxes are told that.
        by_a_worker = vars(stack.orchestrator.config).get("work_pool") is not None
        check_steps(own, self.config, self.name, None if by_a_worker else Client().zen_store.url)
        if self.config.runner == "process":
            return []
        builds = [
            BuildConfiguration(key=names.STEP_OPERATOR_IMAGE_KEY, settings=config.docker_settings, step_name=name)
            for name, config in own.items()
        ]
        if not builds or not modal_builds(self.config, stack):
            return builds
        return self._built(builds, own, stack, snapshot.pipeline_configuration)

    def _built(
        self,
        builds: list[BuildConfiguration],
        steps: Mapping[str, StepConfiguration],
        stack: Stack,
        pipeline: PipelineConfiguration,
    ) -> list[BuildConfiguration]:
        from bridge.images.image_builds import ImageBuilds
        from bridge.step_operators.operated import wishes_of

        if self._images is None:
            self._images = ImageBuilds()

        def environment_of(step: str | None) -> str | None:
            assert step is not None
            return wishes_of(step, steps[step], self.config, self.name).settings.modal_environment

        app, secrets = names.app_name(pipeline.name), self.config.build_secrets
        return self._images.built(builds, stack, app, secrets, environment_of, self._operations(stack).ask, pipeline)

    def submit(self, info: StepRunInfo, entrypoint_command: list[str], environment: dict[str, str]) -> None:
        """Start the sandbox of a step run, or take up the one that runs; return once it is there.

        A step run for which there can be none has failed, and ZenML is told why. Raises ``BridgeError``.
        """
        try:
            run = self._operated(info, entrypoint_command, environment)
            self._operations(run.stack).begin(run, lambda sandbox, url: self._publish(info, sandbox, url))
        except BridgeError as error:
            self._fail(info, error)
            raise
        except BaseException:
            # Interrupted while the sandbox is being made: ZenML cleans up only what was submitted.
            self.cleanup_step_submission(info.step_run)
            raise

    def _operated(self, info: StepRunInfo, entrypoint_command: list[str], environment: dict[str, str]) -> OperatedRun:
        from bridge.planning.resources import pools_not_used
        from bridge.step_operators.operated import OperatedRun, plan_of, warm_not_used, wishes_of
        from bridge.step_operators.single_step import check_reach

        name, config, snapshot = info.pipeline_step_name, info.config, info.snapshot
        wishes = wishes_of(name, config, self.config, self.name)
        check_reach(name, config, wishes, self.config.runner, Client().zen_store.url)
        if snapshot.stack is None:
            raise RunNotPossible(f"The stack of snapshot {snapshot.id} was deleted: run the pipeline again.")
        pools = () if snapshot.is_dynamic else pools_not_used(dict(config.resource_settings), f"step {name}")
        cold = warm_not_used(name, config, wishes.settings, dynamic=snapshot.is_dynamic)
        not_used = (*pools, *ignored.of_component(self.config), *wishes.warnings, *cold)
        self._not_used[info.run_id].warn(not_used, logger)
        image = self._image(info) if self.config.runner == "modal" else None
        retry = config.retry
        return OperatedRun(
            snapshot=snapshot,
            run=Client().get_pipeline_run(info.run_id),
            stack=Stack.from_model(snapshot.stack),
            plan=plan_of(name, config, snapshot, wishes, image),
            config=self.config,
            flow_run_id=os.environ.get(names.ENV_FLOW_RUN_ID, ""),
            environment=self._plain_environment(info, wishes.settings.orphan_timeout),
            secret_environment={
                **environment,  # the token of this run among them
                "ZENML_ACTIVE_PROJECT_ID": str(snapshot.project_id),
                "ZENML_ACTIVE_STACK_ID": str(snapshot.stack.id),
            },
            step_run_id=info.step_run_id,
            operator=self.name,
            # ZenML's own entrypoint needs root for its folder, and wouldn't find this package: ours takes its place.
            command=tuple(entrypoint_command) if config.command is not None else None,
            shared=self._shared(name, snapshot),
            is_tried_again=retry is not None and info.step_run.version <= retry.max_retries,
        )

    def _shared(self, step: str, snapshot: PipelineSnapshotResponse) -> Plan | None:
        """The plan of the steps that may take turns with this one; None where this process calls for it alone."""
        from bridge.step_operators.operated import shared_plan

        if snapshot.is_dynamic or names.ENV_RUN_ID in os.environ:  # of our orchestrator, where it is a step's process
            return None
        if self._shared_plan is None or self._shared_plan[0] is not snapshot:
            image = partial(self._built_for, snapshot)
            self._shared_plan = snapshot, shared_plan(snapshot, self.config, self.name, image)
        plan = self._shared_plan[1]
        return plan if plan is not None and step in plan.upstream else None

    def _built_for(self, snapshot: PipelineSnapshotResponse, step: str) -> str | None:
        """The image of a step of a static pipeline; None where there is none."""
        if self.config.runner == "process" or snapshot.build is None:
            return None
        return snapshot.build.get_image(component_key=names.STEP_OPERATOR_IMAGE_KEY, step=step)

    def _image(self, info: StepRunInfo) -> str:
        try:
            return info.get_image(names.STEP_OPERATOR_IMAGE_KEY)
        except (RuntimeError, KeyError) as error:
            # A dynamic pipeline's images are built before its steps are known.
            raise RunNotPossible(
                f"No image was built for step {info.pipeline_step_name}, which the step operator `{self.name}` runs. "
                "In a dynamic pipeline name the step, with its step operator, in @pipeline(depends_on=[...])."
            ) from error

    def _plain_environment(self, info: StepRunInfo, orphan_timeout: int) -> dict[str, str]:
        from bridge.flow_run.run import LOG_ENVIRONMENT

        # What our orchestrator says to a step's process, where that is the one that calls.
        passed_on = (names.ENV_FLOW_RUN_ID, names.ENV_TASK_RUN_ID)
        return {
            **{name: os.environ[name] for name in passed_on if name in os.environ},
            names.ENV_RUN_ID: str(info.run_id),
            names.ENV_CALLER_TIMEOUT: str(orphan_timeout),
            **LOG_ENVIRONMENT,
            **local_environment(self.config.runner),
        }

    def _operations(self, stack: Stack) -> Operating:
        if self._operating is None:
            try:
                from bridge.step_operators.operating import Operating
            except ModuleNotFoundError as error:
                raise self._not_installed(error) from error
            self._operating = Operating(lambda: self._runner(stack))
        return self._operating

    def _runner(self, stack: Stack) -> Runner:
        from bridge.flow_run.run import runner_of

        try:
            return runner_of(self.config, stack)
        except ModuleNotFoundError as error:
            raise self._not_installed(error) from error

    def _not_installed(self, error: ModuleNotFoundError) -> RunNotPossible:
        return RunNotPossible(
            f"The step operator `{self.name}` starts sandboxes from here, and {error.name} isn't installed here. "
            f"Install {', '.join(sorted(REQUIREMENTS))} in the image of the steps: ZenML does, unless "
            "DockerSettings(install_stack_requirements=False) or skip_build says otherwise."
        )

    def _publish(self, info: StepRunInfo, sandbox_id: str, url: str | None) -> None:
        metadata = sandbox_metadata(sandbox_id, url)
        publish_step_run_metadata(info.step_run_id, {self.id: metadata})
        info.step_run.run_metadata.update(metadata)

    def _fail(self, info: StepRunInfo, error: BridgeError) -> None:
        from bridge.zenml_side import step_runs

        diagnosis = Diagnosis("The step operator couldn't start a sandbox", str(error))
        step_runs.fail_step_run(info.step_run_id, diagnosis)

    def wait(self, step_run: StepRunResponse) -> ExecutionStatus:
        """Wait for the end of a step run."""
        operating = self._operating
        if operating is None or not operating.knows(step_run.id):
            return super().wait(step_run)
        return _OF_VERDICT[operating.until_end(step_run.id).verdict]

    def get_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """How a step run is: RUNNING, COMPLETED, FAILED or STOPPED.

        Raises ``RunnerUnavailable`` rather than guess. Where nobody carries out the step run any more, it has failed,
        and ZenML is told so.
        """
        operating = self._operating
        if operating is not None and operating.knows(step_run.id):
            outcome = operating.outcome(step_run.id)
            return ExecutionStatus.RUNNING if outcome is None else _OF_VERDICT[outcome.verdict]
        return self._elsewhere.status(step_run)

    def cancel(self, step_run: StepRunResponse) -> None:
        """End the sandbox of a step run, which becomes stopped. Raises ``RunnerUnavailable``."""
        from bridge.zenml_side import step_runs

        operating = self._operating
        # Told first: a step that answers SIGTERM with an error of its own would be a failed one.
        if operating is not None and operating.knows(step_run.id):
            step_runs.record_stopped(step_run.id)
            operating.cancel(step_run.id)
            return
        self._elsewhere.cancel(step_run)

    def cleanup_step_submission(self, step_run: StepRunResponse) -> None:
        """End what is left of a step run: its sandbox, where nobody waits for it any more."""
        if self._operating is not None:
            self._operating.forget(step_run.id)

    def get_step_run_metadata(self, info: StepRunInfo) -> dict[str, MetadataType]:
        """Where a step runs, asked for in its sandbox."""
        sandbox = os.environ.get(names.ENV_MODAL_SANDBOX_ID)
        return {names.METADATA_SANDBOX_ID: sandbox} if sandbox else {}

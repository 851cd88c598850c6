"""The private names of ZenML that this package uses, each with its reason; there are no others.

ZenML may change them in any release. ``tests/host/test_upstream_zenml.py`` checks that each still exists.
Nothing here patches ZenML.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zenml.execution.pipeline.dynamic.runner import DynamicPipelineRunner
    from zenml.models import PipelineRunResponse, StepRunResponse
    from zenml.orchestrators.step_launcher import StepLauncher
    from zenml.orchestrators.step_run_utils import StepRunRequestFactory

PRIVATE_NAMES = (
    # Runs an existing step run in this process: ``launch`` would always create a new one, which costs the
    # step one of its own retries (zenml/orchestrators/step_launcher.py, StepLauncher.launch).
    "zenml.orchestrators.step_launcher:StepLauncher._run_step",
    # Docstring and source code of a step come from importing the user's module. A cache lookup must not
    # import it: where the flow or the host runs it may be missing, or do work when imported.
    "zenml.orchestrators.step_run_utils:StepRunRequestFactory._get_docstring_and_source_code",
    # An entrypoint loads its snapshot through this; the host has loaded it already, before the fork.
    "zenml.entrypoints.step_entrypoint_configuration:StepEntrypointConfiguration._load_snapshot",
    # Runs the step once the code is there; overridden to go on with an existing step run.
    "zenml.entrypoints.step_entrypoint_configuration:StepEntrypointConfiguration._run_step",
    # Loads the artifact store alone: other components may need code that is yet to be downloaded from it. Overridden
    # where the whole stack is loaded.
    "zenml.entrypoints.base_entrypoint_configuration:BaseEntrypointConfiguration._load_active_artifact_store",
    # Says how the run of a dynamic pipeline ended; overridden, since it calls a run completed that is being stopped.
    "zenml.execution.pipeline.dynamic.runner:DynamicPipelineRunner._publish_run_status",
)


def run_existing_step_run(launcher: StepLauncher, run: PipelineRunResponse, step_run: StepRunResponse) -> None:
    """Run ``step_run``, which exists, here or through its step operator. Raises what the step raises."""

    def nothing() -> None:
        """ZenML asks for a way to flush logs; its own launcher hands in nothing either."""

    write_logs: Callable[[], None] = nothing
    launcher._run_step(pipeline_run=run, step_run=step_run, force_write_logs=write_logs)


def request_factory_without_user_code() -> type[StepRunRequestFactory]:
    """Return ZenML's request factory in a form that never imports a step.

    A cached step run then takes docstring and source code from the step run that answers it, which ZenML does
    itself where the code is missing.
    """
    from zenml.orchestrators.step_run_utils import StepRunRequestFactory

    class WithoutUserCode(StepRunRequestFactory):
        def _get_docstring_and_source_code(self, step: object) -> tuple[str | None, str | None]:
            return None, None

    return WithoutUserCode


def runner_that_heeds_a_stop() -> type[DynamicPipelineRunner]:
    """Return ZenML's runner of a dynamic pipeline in a form that never calls a run completed that is being stopped.

    Under CONTINUE_ON_FAILURE, and where the function catches what a stopped step raises, its function comes to its end
    all the same, and ZenML's store makes STOPPING into COMPLETED. Into FAILED it doesn't: that becomes STOPPED
    (zenml/zen_stores/schemas/pipeline_run_schemas.py, ``update_status``).
    """
    from zenml.client import Client
    from zenml.enums import ExecutionStatus
    from zenml.execution.pipeline.dynamic.runner import DynamicPipelineRunner

    class HeedsAStop(DynamicPipelineRunner):
        def _publish_run_status(self, return_value: object = None, exception: BaseException | None = None) -> None:
            if exception is None:
                status = Client().get_pipeline_run(self.run.id, hydrate=False).status
                if status in (ExecutionStatus.STOPPING, ExecutionStatus.STOPPED):
                    exception = RuntimeError("The run was stopped.")
            super()._publish_run_status(return_value=return_value, exception=exception)

    return HeedsAStop

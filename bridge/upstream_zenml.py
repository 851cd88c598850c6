"""The private names of ZenML that this package uses, each with its reason; there are no others.

ZenML may change them in any release. ``tests/host/test_upstream_zenml.py`` checks that each still exists.
Nothing here patches ZenML.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

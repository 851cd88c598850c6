"""One attempt of a static step, in the process that runs it. Imports ZenML."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from uuid import UUID

from zenml.artifact_stores import BaseArtifactStore
from zenml.client import Client
from zenml.config.step_configurations import Step
from zenml.entrypoints.base_entrypoint_configuration import BaseEntrypointConfiguration
from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.enums import ExecutionStatus
from zenml.exceptions import RunStoppedException
from zenml.execution.pipeline.utils import prevent_pipeline_execution
from zenml.logger import get_logger
from zenml.models import PipelineSnapshotResponse, StepRunResponse
from zenml.orchestrators import input_utils, publish_utils
from zenml.orchestrators.signal_handler import SignalHandler
from zenml.orchestrators.step_launcher import StepLauncher
from zenml.steps import StepHeartBeatTerminationException
from zenml.utils import code_utils, source_utils

from bridge import names, upstream_zenml
from bridge.flow_run.outcome import TOKEN_REFUSED
from bridge.host import patience, refusal
from bridge.host.run_of_step import Fork, begun_run, snapshot_is_loaded
from bridge.host.tracing import span_of_step

logger = get_logger(__name__)

_STEP_RUN_ID = "step_run_id"
_STEP_NAME = "step_name"
_IMAGE_ROOT = "/app"
"""Where ZenML's images have the user's code (zenml/utils/pipeline_docker_image_builder.py)."""


class OwnCode(BaseEntrypointConfiguration):
    """An entrypoint of ZenML's for a sandbox that may be a plain process.

    Code goes into the folder in :data:`bridge.names.ENV_WORK_DIR` where that is set, since ``/app`` needs root and
    collides with the process next door; where :data:`bridge.names.ENV_SOURCE_ROOT` is set the user's code lies there
    already.
    """

    def prepare_code_environment(self) -> None:
        """Make the user's code importable. Raises what ZenML's raises."""
        work_dir = os.environ.get(names.ENV_WORK_DIR)
        source_root = os.environ.get(names.ENV_SOURCE_ROOT)
        if work_dir is None and source_root is None:
            if not self.should_download_code:
                use_source_root(_IMAGE_ROOT)
            super().prepare_code_environment()
            return
        if work_dir is not None:
            os.makedirs(work_dir, exist_ok=True)
            os.chdir(work_dir)
        use_source_root(source_root or os.getcwd())
        if source_root is not None:
            return
        if self.should_download_code:
            self._download_code()

    def _download_code(self) -> None:
        if code_path := self.snapshot.code_path:
            store = self._load_active_artifact_store()
            patience.download(
                "The user's code",
                lambda: code_utils.download_code_from_artifact_store(code_path=code_path, artifact_store=store),
            )
        elif code_reference := self.snapshot.code_reference:
            self.download_code_from_code_repository(code_reference=code_reference)


class SandboxEntrypoint(OwnCode, StepEntrypointConfiguration):
    """ZenML's step entrypoint for such a sandbox."""

    def __init__(self, arguments: list[str], snapshot: PipelineSnapshotResponse | None = None) -> None:
        """With ``snapshot`` this is a fork of a process that has loaded it, and activated ZenML's integrations."""
        super().__init__(arguments)
        self._is_fork = snapshot is not None
        self._snapshot = snapshot

    def run(self) -> None:
        """Run it. Raises what the step raises."""
        with snapshot_is_loaded(self.snapshot):
            if not self._is_fork:
                super().run()
                return
            # What ZenML's does besides is to look once more at what each integration requires: 25 ms of a step's 110.
            self.prepare_code_environment()
            self._run_step(step=self.step, snapshot=self.snapshot)

    def _load_active_artifact_store(self) -> BaseArtifactStore:
        # A fork has the whole stack loaded; of its model ZenML would ask for the store's configuration once more.
        return Client().active_stack.artifact_store if self._is_fork else super()._load_active_artifact_store()


class StepEntrypoint(SandboxEntrypoint):
    """Runs a step, or, with ``--step_run_id``, goes on with a step run whose process is dead.

    ``fork`` is what a process that a step host has forked knows.
    """

    def __init__(
        self, arguments: list[str], snapshot: PipelineSnapshotResponse | None = None, fork: Fork | None = None
    ) -> None:
        """Take the arguments of ZenML's."""
        super().__init__(arguments, snapshot)
        self._fork = fork

    @classmethod
    def get_entrypoint_options(cls) -> dict[str, bool]:
        """Return ZenML's options and the optional ``step_run_id``."""
        return super().get_entrypoint_options() | {_STEP_RUN_ID: False}

    def _run_step(self, step: Step, snapshot: PipelineSnapshotResponse) -> None:
        step_run_id = self.entrypoint_args.get(_STEP_RUN_ID)
        if step_run_id is None:
            with begun_run(step, self._fork):
                super()._run_step(step=step, snapshot=snapshot)
        else:
            continue_step_run(step, snapshot, UUID(step_run_id))


def use_source_root(source_root: str) -> None:
    """Make the folder importable, and the one that ZenML loads the user's sources from.

    ZenML would take the folder of the main module, which is this package's: a user's ``store.py`` would be ours.
    """
    if source_root not in sys.path:
        sys.path.insert(0, source_root)
    source_utils.set_custom_source_root(source_root)


def continue_step_run(step: Step, snapshot: PipelineSnapshotResponse, step_run_id: UUID) -> None:
    """Run a step for its RUNNING step run, whose process is dead.

    Heartbeats, signals and statuses are those of a first launch. Outputs get folders of their own, so what
    the dead process left behind is in nobody's way. Raises what the step raises.
    """
    client = Client()
    step_run = client.zen_store.get_run_step(step_run_id)
    if is_over(step_run):
        return
    run = client.get_pipeline_run(step_run.pipeline_run_id)
    # Lazily loaded values become parameters of the step here, as they do before a step run is created.
    input_utils.resolve_step_inputs(step=step, pipeline_run=run)
    launcher = StepLauncher(snapshot=snapshot, step=step, orchestrator_run_id=run.orchestrator_run_id or str(run.id))
    logger.info("Step `%s` goes on in a new process.", step_run.name)
    publish_utils.step_exception_info.set(None)
    handler = SignalHandler(step_run=step_run, execution_mode=snapshot.pipeline_configuration.execution_mode)
    with handler:
        run_and_publish(lambda: upstream_zenml.run_existing_step_run(launcher, run, step_run), step_run)


def is_over(step_run: StepRunResponse) -> bool:
    """Whether there is nothing left to run for a step run that another process began.

    One that is being cancelled, since its place in a resource pool was taken away, is cancelled: that process, whose
    heartbeat would have told it, is dead.
    """
    if step_run.status == ExecutionStatus.CANCELLING:
        step_run = publish_utils.publish_cancelled_step_run(step_run.id)
    elif not step_run.status.is_finished:
        return False
    logger.info("Step run `%s` has ended already: %s.", step_run.id, step_run.status.value)
    return True


def run_and_publish(work: Callable[[], None], step_run: StepRunResponse) -> None:
    """Run the step run and leave it with a status, by the rules of ZenML's ``StepLauncher.launch``."""
    try:
        work()
    except RunStoppedException:
        raise
    except BaseException as error:
        status = Client().get_run_step(step_run.id, hydrate=False).status
        if status == ExecutionStatus.CANCELLING:
            publish_utils.publish_cancelled_step_run(step_run.id)
        elif isinstance(error, StepHeartBeatTerminationException) or status == ExecutionStatus.STOPPING:
            publish_utils.publish_stopped_step_run(step_run.id)
        elif not status.is_finished and status != ExecutionStatus.RETRYING:
            publish_utils.publish_failed_step_run(step_run.id)
        raise


def arguments_for(snapshot_id: str, step: str, step_run_id: str | None) -> list[str]:
    """Return the arguments of :class:`StepEntrypoint`, with ``=``: a step's name may begin with a dash."""
    arguments = [f"--snapshot_id={snapshot_id}", f"--step_name={step}"]
    return [*arguments, f"--{_STEP_RUN_ID}={step_run_id}"] if step_run_id else arguments


def run_attempt(
    arguments: Sequence[str],
    snapshot: PipelineSnapshotResponse | None = None,
    entrypoint: Callable[[list[str], PipelineSnapshotResponse | None], SandboxEntrypoint] = StepEntrypoint,
) -> int:
    """Run one attempt on this process's main thread and return the exit code: 0, or 1 where the step raised, or
    ``TOKEN_REFUSED`` where ZenML's server doesn't take the sandbox's token any more.

    The traceback goes to the log. A step that calls ``sys.exit`` exits with its own code.
    """
    with prevent_pipeline_execution():
        try:
            patience.ride_out_outages()
            prepared = entrypoint(list(arguments), snapshot)
            with span_of_step(prepared.entrypoint_args[_STEP_NAME]):
                prepared.run()
        except SystemExit as error:
            logger.exception("The step called sys.exit.")
            return error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            logger.exception("The step didn't succeed.")
            return TOKEN_REFUSED if refusal.is_refusal(error) else 1
    return 0

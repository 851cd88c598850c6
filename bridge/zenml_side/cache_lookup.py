"""What ZenML's cache answers for steps of a run, asked before anything is started for them."""

from __future__ import annotations

import logging
import threading

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.exceptions import EntityExistsError, IllegalOperationError, InputResolutionError
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse
from zenml.orchestrators import step_run_utils
from zenml.stack import Stack

from bridge import upstream_zenml
from bridge.flow_run.outcome import Reported
from bridge.zenml_side.step_runs import reported

_logger = logging.getLogger(__name__)


class CacheLookup:
    """Asks ZenML's cache for the steps of one run, and publishes what it answers. Any thread may ask.

    Where the key needs the user's code (a cache function, file or source dependencies) the answer is left to
    the sandbox, which has it. So it is where this process's active project isn't the run's: ZenML computes
    the key from the active project and takes no other (zenml/orchestrators/step_run_utils.py,
    ``populate_request``).
    """

    def __init__(self, snapshot: PipelineSnapshotResponse, run: PipelineRunResponse, stack: Stack) -> None:
        self._snapshot = snapshot
        self._run = run
        factory = upstream_zenml.request_factory_without_user_code()
        self._factory = factory(snapshot=snapshot, pipeline_run=run, stack=stack)
        self._lock = threading.Lock()
        self._active_project: bool | None = None

    def answer(self, step: str) -> Reported | None:
        """Return CACHED or SKIPPED, published, or None where ``step`` has to run.

        Every upstream step must have succeeded. Raises what ZenML's store raises when it can't be asked.
        """
        with self._lock:
            if not self._answerable(step):
                return None
            return self._ask(step)

    def _answerable(self, step: str) -> bool:
        config = self._snapshot.step_configurations[step].config
        policy = config.cache_policy
        if policy.cache_func or policy.file_dependencies or policy.source_dependencies:
            return False
        replayed = self._run.original_run is not None
        if not replayed and not self._factory.has_caching_enabled(step):
            return False
        if self._active_project is None:
            self._active_project = Client().active_project.id == self._run.project_id
        return self._active_project

    def _ask(self, step: str) -> Reported | None:
        request = self._factory.create_request(step)
        try:
            self._factory.populate_request(request)
        except (InputResolutionError, ValueError, RuntimeError, KeyError, ImportError) as error:
            # An input that can't be resolved is an error of the step: its own process meets and reports it.
            _logger.debug("The cache wasn't asked for step %s: %s", step, error)
            return None
        if request.status not in (ExecutionStatus.CACHED, ExecutionStatus.SKIPPED):
            return None
        try:
            published = step_run_utils.publish_cached_step_run(request, pipeline_run=self._run)
        except (IllegalOperationError, EntityExistsError) as error:
            # As of a step that runs: its process is refused as well, and what that means is judged there.
            _logger.info("ZenML takes no cached step run of %s any more: %s", step, error)
            return None
        self._factory.record_step_run(published)
        return reported(published)

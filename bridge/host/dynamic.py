"""``python -m bridge.host dynamic``: the function of a dynamic pipeline, and its inline steps, in this sandbox.

ZenML's own runner does the work: maps, futures, child pipelines, waits, retries, hooks. Where it wants a sandbox for
an isolated step it asks our orchestrator, which asks the flow (:mod:`bridge.dynamic_pipelines.asks`): no credentials of
Modal or Prefect are needed here. Imports ZenML.

Exit codes: 0, the function came to its end, or the run paused; 45, the run has failed or was stopped, and ZenML knows
(its ``DYNAMIC_PIPELINE_RUN_FAILED_EXIT_CODE``); 3, it broke before ZenML could be told. None of them is believed: the
run's status in ZenML is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from uuid import UUID

from zenml.client import Client
from zenml.constants import (
    DYNAMIC_PIPELINE_RUN_FAILED_EXIT_CODE,
    ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_INTERVAL,
    ENV_ZENML_DYNAMIC_PIPELINE_WORKER_COUNT,
)
from zenml.execution.pipeline.utils import prevent_pipeline_execution
from zenml.integrations.registry import integration_registry
from zenml.logger import get_logger
from zenml.pipelines.dynamic.entrypoint_configuration import RUN_ID_OPTION, DynamicPipelineEntrypointConfiguration

from bridge import names
from bridge.host import orphan, patience
from bridge.host.entrypoint import OwnCode
from bridge.host.tracing import span_of_function
from bridge.upstream_zenml import runner_that_heeds_a_stop

COMPLETED, FAILED, BROKEN = 0, DYNAMIC_PIPELINE_RUN_FAILED_EXIT_CODE, 3
MONITORING_SECONDS = "2"
"""How often ZenML's runner asks how its isolated steps are. Its default of 10 is for questions to a cloud; here it
asks ZenML."""

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    snapshot_id: str
    run_id: str
    max_parallelism: int | None = None
    """Most concurrent inline steps; ZenML's default is 10."""


class DynamicEntrypoint(OwnCode, DynamicPipelineEntrypointConfiguration):
    """ZenML's entrypoint of a dynamic pipeline, for a sandbox that may be a plain process."""

    def run(self) -> None:
        """As ZenML's, with a runner that heeds a stop to the last.

        Raises ``SystemExit`` with 45 where the run has an end that ZenML knows, else what broke it.
        """
        integration_registry.activate_integrations()
        self.prepare_code_environment()
        run = Client().get_pipeline_run(UUID(self.entrypoint_args[RUN_ID_OPTION]))
        runner = runner_that_heeds_a_stop()(snapshot=self.snapshot, run=run)
        try:
            runner.run_pipeline()
        except BaseException:
            if runner.run.status.is_finished:
                logger.exception("Pipeline run `%s` failed.", runner.run.id)
                sys.exit(FAILED)
            raise


def main(options: Options) -> int:
    """Run the pipeline on this process's main thread and return the exit code."""
    os.environ[names.ENV_ORCHESTRATES] = options.snapshot_id
    os.environ.setdefault(ENV_ZENML_DYNAMIC_PIPELINE_MONITORING_INTERVAL, MONITORING_SECONDS)
    if options.max_parallelism is not None:
        os.environ[ENV_ZENML_DYNAMIC_PIPELINE_WORKER_COUNT] = str(options.max_parallelism)
    arguments = [f"--snapshot_id={options.snapshot_id}", f"--run_id={options.run_id}"]
    orphaned, over = threading.Event(), threading.Event()

    def finish() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(orphan.GRACE_SECONDS)

    # ZenML's runner takes the SIGTERM for a failure of the pipeline, and says so over what was said before.
    orphan.watch(orphaned.set, finish, last_word=True)
    code = _run(arguments)
    over.set()
    if orphaned.is_set():
        time.sleep(orphan.PATIENCE_SECONDS)  # the thread that tells ZenML ends this process
    return code


def _run(arguments: list[str]) -> int:
    # A module of the user's that calls its pipeline when it is imported runs nothing.
    with prevent_pipeline_execution():
        try:
            patience.ride_out_outages()
            entrypoint = DynamicEntrypoint(arguments)
            with span_of_function(entrypoint.snapshot.pipeline_configuration.name):
                entrypoint.run()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else BROKEN
        except BaseException:
            logger.exception("The pipeline broke.")
            return BROKEN
    return COMPLETED

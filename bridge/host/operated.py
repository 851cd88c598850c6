"""A step that a step operator runs, in the sandbox that the operator made for it. Imports ZenML.

Its step run exists: whoever called the operator made it, and waits. So nothing here asks for the operator again.
"""

from __future__ import annotations

from zenml.config.step_configurations import Step
from zenml.models import PipelineSnapshotResponse
from zenml.orchestrators.signal_handler import SignalHandler
from zenml.step_operators.step_operator_entrypoint_configuration import StepOperatorEntrypointConfiguration

from bridge.host.entrypoint import SandboxEntrypoint, is_over, run_and_publish


class OperatedEntrypoint(SandboxEntrypoint, StepOperatorEntrypointConfiguration):
    """ZenML's entrypoint of a step operator, for a sandbox that may be a plain process.

    What it adds: the step run gets an end from here, so that a stopped step is stopped also where nobody waits for it
    any more; and a step run that has ended is left alone, since a lost sandbox may have come that far.
    """

    def _run_step(self, step: Step, snapshot: PipelineSnapshotResponse) -> None:
        step_run = self.step_run
        if is_over(step_run):
            return
        run = super()._run_step
        handler = SignalHandler(step_run=step_run, execution_mode=snapshot.pipeline_configuration.execution_mode)
        with handler:
            run_and_publish(lambda: run(step=step, snapshot=snapshot), step_run)

"""What is other in a dynamic pipeline whose steps have sandboxes of their own, and whose function loads no result.

ZenML's runner, in the sandbox of the function, begins and retries the steps: each attempt that is its to make is a step
run and a Prefect task run of its own. A failed step fails the run unless the mode is CONTINUE_ON_FAILURE. Once the run
has failed nothing is tried again: what might have been is stopped. Standard library only, nothing of `bridge`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.case import FUNCTION, Case, StepSpec
from tests.chaos.model import NEVER, PREFECT, Judge, most_at_once
from tests.chaos.seen import ATTEMPT, Seen, TaskRun

PIPELINE = "chaos_dynamic"


def violations(case: Case, seen: Seen) -> list[str]:
    """Return what is not as it must be, one sentence each."""
    if seen.hung:
        return [f"hung: {seen.hung}"]
    return list(_DynamicJudge(case, seen).everything())


class _DynamicJudge(Judge):
    def _function_may_have_failed(self) -> bool:
        return len(self._of(FUNCTION)) + self.case.init_failures > self.case.infrastructure_retries

    def _run_is_over_at(self) -> Iterator[float]:
        if self._function_may_have_failed():
            lost = self._of(FUNCTION)
            yield lost[-1].time if lost else self._last_end()

    # ---- what has to be

    def _run(self) -> Iterator[str]:
        failed = "failed" in self.fates.values()
        expected = {("completed", "Completed")}
        if failed and self.case.failure_mode != "continue_on_failure":
            expected = {("failed", "Failed")}
        if self._function_may_have_failed():
            expected |= {("failed", "Failed")}
        if stops := self._stops():
            by_itself, expected = expected, {("stopped", "Cancelled")}
            if failed:
                expected |= {("failed", "Cancelled"), ("failed", "Failed")}
            if not any(strike.running for strike in stops):
                expected |= by_itself  # it may have come when nothing was left to be stopped
        if (self.seen.run, self.seen.flow_run) not in expected:
            yield f"the run is {self.seen.run} in ZenML and {self.seen.flow_run} in Prefect, not {sorted(expected)}"

    def _task_runs(self, step: StepSpec) -> list[TaskRun]:
        """Those of a step, in the order of its step runs."""
        named = {name: found for name, found in self.seen.task_runs.items() if name.partition(ATTEMPT)[0] == step.name}
        return [named[name] for name in sorted(named, key=lambda name: (len(name), name))]

    def _counted(self, step: StepSpec) -> Iterator[str]:
        costs = self.costs[step.name]
        versions, task_runs = len(self.seen.step_runs.get(step.name, ())), len(self._task_runs(step))
        if versions > step.retries + 1:
            yield f"ZenML has {versions} step runs of {step.name}, with {step.retries} retries"
        if task_runs > versions:
            yield f"Prefect has {task_runs} task runs of {step.name}, of which ZenML has {versions} step runs"
        if self.fates[step.name] == "completed":
            least, most = costs.own[0] + 1, min(costs.own[1], step.retries) + 1
            for number, what in ((versions, "ZenML has {} step runs"), (task_runs, "Prefect has {} task runs")):
                if not least <= number <= most:
                    yield f"{what.format(number)} of {step.name}, not {least} to {most}"

    def _both_sides(self, step: StepSpec) -> Iterator[str]:
        fate, task_runs = self.fates[step.name], self._task_runs(step)
        if step.cached or not task_runs:
            if fate in ("completed", "failed") and self.seen.failed_without_flow is None and not step.cached:
                yield f"Prefect has no task run of {step.name}, which is {fate} in ZenML"
            return
        allowed = PREFECT.get(fate, NEVER)
        if fate == "stopped" and self.costs[step.name].own[1]:
            allowed = allowed | {"Failed"}  # it failed, and ZenML has no other word for a retry that isn't made
        if task_runs[-1].state not in allowed:
            state, message = task_runs[-1].state, task_runs[-1].message
            yield f"{step.name} is {fate} in ZenML and {state} in Prefect ({message[:120]})"
        for earlier in task_runs[:-1]:
            if earlier.state != "Failed":
                yield f"an earlier task run of {step.name} is {earlier.state}"

    def _task_of_the_pipeline(self) -> Iterator[str]:
        """The task run of the function says what its flow run does; of a stopped one with failed steps, either."""
        if self.seen.failed_without_flow is not None:
            return
        task_run = self.seen.task_runs.get(PIPELINE)
        state = "" if task_run is None else task_run.state
        failed = self.seen.run == "failed" or "failed" in self.fates.values()
        if state not in {self.seen.flow_run} | ({"Failed", "Cancelled"} if failed and self._stops() else set()):
            yield f"the function's task run is {state or 'missing'}, its flow run is {self.seen.flow_run}"

    # ---- limits

    def _limits(self) -> Iterator[str]:
        if self.seen.alive:
            yield f"sandboxes live on: {', '.join(self.seen.alive)}"
        functions = most_at_once((box.created, box.ended) for box in self.seen.sandboxes if not box.step)
        if functions > 1:
            yield f"{functions} sandboxes of the function at once"
        most = self.case.max_parallelism
        if most is None:
            return
        sandboxes = most_at_once((box.created, box.ended) for box in self.seen.sandboxes if box.step)
        if sandboxes > most:
            yield f"{sandboxes} sandboxes of steps at once, with max_parallelism {most}"
        steps = most_at_once(self._spans())
        if steps > most:
            yield f"{steps} steps at once, with max_parallelism {most}"

"""When a step will be ready, by what the steps above it took last time: a GPU that waits costs as one that works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRunResponse

from bridge.zenml_side import step_runs


def earlier_durations(run: PipelineRunResponse) -> dict[str, float]:
    """Return the seconds that each step took in the newest completed run of the same pipeline.

    Empty if there is none. Steps that took nothing, their outputs being known, aren't in it.
    """
    if run.pipeline is None:
        return {}
    found = Client().list_pipeline_runs(
        pipeline_id=run.pipeline.id,
        project=run.project_id,
        status=ExecutionStatus.COMPLETED.value,
        sort_by="desc:created",
        size=1,
    )
    if not found.items:
        return {}
    return {
        seen.step: (seen.end - seen.start).total_seconds()
        for seen in step_runs.overview(found.items[0])
        if seen.start is not None and seen.end is not None and seen.status == ExecutionStatus.COMPLETED.value
    }


class Foresight:
    """Calls for a sandbox ``lead`` seconds before the step that needs it is ready, as far as that can be known.

    Args:
        upstream: The upstream steps of each step that sandboxes may be called for.
        lead: Seconds.
        call: Called with the step, on the event loop; again only after a step above it has begun once more.
    """

    def __init__(self, upstream: Mapping[str, Collection[str]], lead: float, call: Callable[[str], None]) -> None:
        self._upstream = {step: frozenset(above) for step, above in upstream.items()}
        self._lead = lead
        self._call = call
        self._durations: Mapping[str, float] = {}
        self._begun: dict[str, float] = {}
        self._done: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._called: set[str] = set()

    def learn(self, durations: Mapping[str, float]) -> None:
        """How long steps take, in seconds."""
        self._durations = durations
        self._plan()

    def begin(self, step: str) -> None:
        """An attempt at ``step`` begins."""
        self._begun[step] = asyncio.get_running_loop().time()
        self._called -= {below for below, above in self._upstream.items() if step in above}
        self._forget(step)
        self._plan()

    def end(self, step: str) -> None:
        """``step`` has ended for good. Idempotent."""
        if step not in self._done:
            self._done.add(step)
            self._forget(step)
            self._plan()

    def close(self) -> None:
        """Call for nothing more."""
        self._upstream = {}
        for step in list(self._timers):
            self._forget(step)

    def _plan(self) -> None:
        loop = asyncio.get_running_loop()
        for step, above in self._upstream.items():
            running = above - self._done
            known = all(name in self._begun and name in self._durations for name in running)
            if not running or not known or step in self._begun or step in self._called | self._done:
                continue
            self._forget(step)
            ready = max(self._begun[name] + self._durations[name] for name in running)
            self._timers[step] = loop.call_at(ready - self._lead, self._near, step)

    def _near(self, step: str) -> None:
        del self._timers[step]
        self._called.add(step)
        self._call(step)

    def _forget(self, step: str) -> None:
        if (timer := self._timers.pop(step, None)) is not None:
            timer.cancel()

"""One task run of the current flow run, from its first attempt to its last.

Prefect's engine calls for each attempt, keeps the state, and sleeps before the next one. Nothing but a cancel reaches
it there, which would leave the task run Crashed: so who is to end early is taken out, and says itself how it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from uuid import UUID

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from bridge import names
from bridge.upstream_prefect import report_task_run_state, run_task_after


class EngineTask:
    """A step, or a whole pipeline, as Prefect's engine runs it.

    Args:
        name: What is run; Prefect shows it.
        attempt: Makes one attempt and returns the state that it ends in. Told which attempt of the task run it is,
            from 1; those of earlier processes count.
        retries: How many attempts may follow the first one of this process.
        delays: Seconds before each of them; the last one stands for those beyond.
        may_retry: Whether another attempt follows one that has failed.
    """

    def __init__(
        self,
        name: str,
        attempt: Callable[[int], Awaitable[State[None]]],
        *,
        retries: int = 0,
        delays: Sequence[float] = (),
        may_retry: Callable[[], bool] = lambda: True,
    ) -> None:
        self._attempt = attempt
        self._task_run: TaskRun | None = None
        self._attempting = False
        self._defect: Exception | None = None
        shown = names.prefect_name(name)

        # A plain function: anything else that can be called silently disables retries
        # (prefect/task_engine.py: inspect.isfunction).
        def condition(task: object, task_run: object, state: object) -> bool:
            return may_retry()

        self._task = Task(
            self._make_attempt,
            name=shown,
            # The name as a function: Prefect formats a string, and a step may be called `{x}`.
            task_run_name=lambda: shown,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=retries,
            retry_delay_seconds=list(delays) or None,
            retry_condition_fn=condition,
        )

    @property
    def attempts(self) -> int:
        """How many attempts there were, those of earlier processes included; 0 where this process has made none."""
        return self._task_run.run_count if self._task_run is not None else 0

    def raise_defect(self) -> None:
        """Raise what an attempt has raised: to Prefect's engine that is a failure like any other."""
        if self._defect is not None:
            raise self._defect

    async def run(self, task_run_id: UUID, upstream: Iterable[UUID] = (), attempts_before: int = 0) -> State[None]:
        """Run it as the task run ``task_run_id`` and return its final state.

        ``upstream`` are the task runs that Prefect draws above it, ``attempts_before`` the attempts of earlier
        processes of the flow run. Raises what :func:`bridge.upstream_prefect.run_task_after` raises.
        """
        return await run_task_after(self._task, task_run_id, upstream, attempts_before=attempts_before)

    async def run_unless_killed(
        self, task_run_id: UUID, upstream: Iterable[UUID], attempts_before: int, kill: asyncio.Event
    ) -> State[None] | None:
        """Run it likewise; None where it was killed between two attempts. Then its end is to be told to :meth:`report`.

        An attempt that is being made has to heed ``kill`` by itself.
        """
        call = asyncio.ensure_future(self.run(task_run_id, upstream, attempts_before))
        killed = asyncio.ensure_future(kill.wait())
        await asyncio.wait({call, killed}, return_when=asyncio.FIRST_COMPLETED)
        killed.cancel()
        if not call.done() and not self._attempting and self._task_run is not None:
            call.cancel()
            await asyncio.wait({call})
            return None
        return await call

    def report(self, state: State[None]) -> None:
        """Put the task run into this state, now that no engine works on it any more. Not before its first attempt."""
        if self._task_run is None:
            raise RuntimeError("A task run of which no attempt was made can't have another state than its engine's")
        report_task_run_state(self._task_run, state)

    async def _make_attempt(self, upstream: tuple[()]) -> State[None]:
        context = TaskRunContext.get()
        if context is None:
            raise RuntimeError("An attempt runs inside its Prefect task run")
        self._task_run = context.task_run
        self._attempting = True
        try:
            return await self._attempt(context.task_run.run_count)
        except Exception as error:
            self._defect = error
            raise
        finally:
            self._attempting = False

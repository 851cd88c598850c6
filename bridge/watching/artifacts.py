"""What Prefect's UI shows of a run besides its tasks: a table of the steps, their progress, and the way to ZenML and
Modal. Kept up to date while the run goes on, as well as may be: an artifact never fails a run, nor holds it up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timezone
from decimal import Decimal
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.utilities.urls import url_for
from zenml.models import PipelineRunResponse
from zenml.utils.dashboard_utils import get_run_url
from zenml.utils.time_utils import utc_now

from bridge import names
from bridge.awaiting import set_within
from bridge.dynamic_pipelines import asks
from bridge.flow_run.run import Run
from bridge.plan import Mode
from bridge.runners.base import HasDashboard, Runner
from bridge.watching.board import Board
from bridge.zenml_side import step_runs
from bridge.zenml_side.zenml_calls import ZenMLCalls

SECONDS = 3.0
"""How often what has changed is sent; a table of thousands of steps goes less often."""
ROWS_A_SECOND = 100
COST_SECONDS = 60.0
"""How often Modal is asked what the run costs; what it says is minutes late anyway."""
CLOSING_SECONDS = 10.0

_logger = logging.getLogger(__name__)


def pages(flow_run_id: UUID, run: PipelineRunResponse) -> dict[str, str | None]:
    """Where a run can be looked at, by the name of whose page it is; None where there is no UI."""
    return {"Prefect": url_for("flow-run", obj_id=flow_run_id), "ZenML": get_run_url(run)}


@dataclass
class _Artifact:
    """One artifact of the flow run: made once, then updated. A flow run that is resumed goes on with it."""

    kind: str
    key: str
    description: str
    id: UUID | None = None
    sent: object = field(default=None)


class Showing:
    """Shows one run. Use as ``async with``; leaving sends the last state."""

    def __init__(self, client: PrefectClient, run: Run, board: Board, runner: Runner) -> None:
        self._client = client
        self._run = run
        self._board = board
        self._dashboard = runner if isinstance(runner, HasDashboard) else None
        self._environments = run.plan.modal_environments
        self._apps: list[str] = []
        self._costs_asked = time.monotonic()
        self._thread = ZenMLCalls(patience=0.0)
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = False
        self._zenml: str | None = None
        pipeline = run.plan.pipeline
        self._table = _Artifact("table", names.artifact_key("steps", pipeline), f"The steps of {pipeline}.")
        self._progress = _Artifact("progress", names.artifact_key("progress", pipeline), "Steps that have ended.")
        self._links = _Artifact("markdown", names.artifact_key("links", pipeline), "Where else to look.")

    async def __aenter__(self) -> Showing:
        self._task = asyncio.ensure_future(self._keep_showing())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._over.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=CLOSING_SECONDS)
            if not done:
                self._task.cancel()
                _logger.warning("The artifacts of the flow run aren't up to date: Prefect took too long.")
        self._thread.close()

    async def _keep_showing(self) -> None:
        await self._trying(self._adopt)
        pause = max(SECONDS, len(self._run.plan.steps) / ROWS_A_SECOND)
        while not self._over.is_set():
            await self._show()
            await set_within(self._over, pause)
        if self._run.plan.mode.in_one_sandbox:
            await self._trying(self._ask_zenml)
        self._board.close("the run ended before it could start")
        await self._show(asking=False)

    async def _show(self, *, asking: bool = True) -> None:
        if asking and self._run.plan.mode.in_one_sandbox:
            await self._trying(self._ask_zenml)
        if not asking or time.monotonic() - self._costs_asked > COST_SECONDS:
            self._costs_asked = time.monotonic()
            await self._trying(self._ask_costs)
        await self._trying(lambda: self._send(self._table, json.dumps(self._board.table())))
        await self._trying(lambda: self._send(self._progress, self._board.progress))
        await self._trying(self._find_apps)
        await self._trying(self._send_links)

    async def _trying(self, do: Callable[[], Awaitable[None]]) -> None:
        try:
            await do()
            self._away = False
        except Exception as error:
            # Best effort by intent: whatever it is, the run is worth more than its picture.
            if not self._away:
                _logger.warning("The artifacts of the flow run aren't up to date: %s: %s", type(error).__name__, error)
            self._away = True

    async def _adopt(self) -> None:
        """Find the artifacts that an earlier life of this flow run made."""
        by_key = {artifact.key: artifact for artifact in (self._table, self._progress, self._links)}
        chosen = ArtifactFilter(flow_run_id={"any_": [self._run.flow_run_id]}, key={"any_": list(by_key)})
        for found in await self._client.read_artifacts(artifact_filter=chosen):
            if found.key in by_key:
                by_key[found.key].id = found.id

    async def _ask_zenml(self) -> None:
        run = self._run.run
        if self._run.plan.mode is Mode.DYNAMIC:
            found = await self._thread.call(lambda: asks.overview(run))
        else:
            steps = self._board.open_steps  # ZenML's server takes a time for each that it tells of
            found = await self._thread.call(lambda: step_runs.overview(run, steps))
        self._board.seen(found, utc_now())

    async def _ask_costs(self) -> None:
        if self._dashboard is None:
            return
        run, app = self._run, names.app_name(self._run.plan.pipeline)
        since = run.run.created.replace(tzinfo=timezone.utc)  # ZenML's times are UTC without saying so
        tags = {names.TAG_RUN_ID: run.id}
        costs: dict[str | None, Decimal] = {}
        for environment in self._environments:
            found = await self._dashboard.costs(app, tags, names.TAG_STEP, since, environment)
            costs |= {step: costs.get(step, Decimal(0)) + cost for step, cost in found.items()}
        self._board.costs(costs)

    async def _find_apps(self) -> None:
        if self._dashboard is None or self._apps:
            return
        app = names.app_name(self._run.plan.pipeline)
        pages = [(environment, await self._dashboard.app_url(app, environment)) for environment in self._environments]
        self._apps = [f"[{app}]({url})" + (f" in {environment}" if environment else "") for environment, url in pages]

    async def _send_links(self) -> None:
        run = self._run
        if self._zenml is None:
            url = await self._thread.call(lambda: get_run_url(run.run))
            name = names.markdown_text(run.run.name)
            self._zenml = f"[{name}]({url})" if url else f"{name}, id {run.id}"
        lines = [f"- ZenML run: {self._zenml}"]
        if self._dashboard is not None:
            box = self._board.sandbox_url
            pages = ", ".join(self._apps) or names.app_name(run.plan.pipeline)
            lines.append(f"- Modal app: {pages}" + (f"; [newest sandbox]({box})" if box else ""))
        if self._board.cost is not None:
            lines.append(f"- Cost so far: ${self._board.cost:.4f}, as Modal estimates it, some minutes late")
        await self._send(self._links, "\n".join(lines))

    async def _send(self, artifact: _Artifact, data: object) -> None:
        if data == artifact.sent:
            return
        if artifact.id is None:
            made = await self._client.create_artifact(
                ArtifactCreate(
                    key=artifact.key,
                    type=artifact.kind,
                    description=artifact.description,
                    data=data,
                    flow_run_id=UUID(self._run.flow_run_id),
                )
            )
            artifact.id = made.id
        else:
            await self._client.update_artifact(artifact.id, ArtifactUpdate(data=data))
        artifact.sent = data

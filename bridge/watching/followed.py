"""The steps of a run that goes on elsewhere, for who waits for it: the table that its flow keeps in Prefect
(:mod:`bridge.watching.artifacts`), read back.
"""

from __future__ import annotations

import json
from decimal import Decimal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter
from prefect.client.schemas.sorting import ArtifactSort

from bridge import names
from bridge.watching.board import BLOCKED, SHARED, WAITING, Row, row_of, said_of


class FollowedSteps:
    """What the flow run said of its steps last: it does so every few seconds."""

    def __init__(self, flow_run_id: UUID, pipeline: str) -> None:
        self._chosen = ArtifactFilter(
            flow_run_id={"any_": [flow_run_id]}, key={"any_": [names.artifact_key("steps", pipeline)]}
        )
        self._rows: list[Row] = []
        self._told: dict[str, tuple[object, object]] = {}

    def read(self, client: SyncPrefectClient) -> None:
        """Ask again. Raises what the client raises."""
        for found in client.read_artifacts(artifact_filter=self._chosen, sort=ArtifactSort.UPDATED_DESC, limit=1):
            # Another release at the worker may have other columns.
            self._rows = [row_of(row) for row in json.loads(str(found.data))]

    def table(self) -> list[Row]:
        """The rows, as :meth:`bridge.watching.board.Board.table` has them."""
        return self._rows

    @property
    def cost(self) -> Decimal | None:
        """What the run cost so far, in dollars, as far as it is known."""
        known = [Decimal(str(row["cost ($)"])) for row in self._rows if row["cost ($)"]]
        return sum(known, Decimal(0)) if known else None

    def news(self) -> list[str]:
        """A line for each step that has begun, or come to another state, since this was asked last."""
        lines = []
        for row in self._rows:
            step, now = str(row["step"]), (row["state"], row["attempt"])
            if row["state"] in (BLOCKED, WAITING) or step == SHARED or self._told.get(step) == now:
                continue
            self._told[step] = now
            tries = f" (attempt {row['attempt']})" if row["attempt"] not in ("", 1) else ""
            said = said_of(row)
            lines.append(f"Step {step}: {row['state']}{tries}" + (f": {said}" if said else ""))
        return lines

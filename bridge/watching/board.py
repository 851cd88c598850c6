"""What a person wants to know of a run at a glance: one row a step. Pure: no Prefect, no ZenML; the clock is given.

In ``per_step`` mode the flow tells the board what happens as it happens; in ``pipeline`` mode, where the flow sees one
sandbox only, the board is filled from ZenML's step runs. In ``dynamic`` mode rows come as their steps do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Literal, TypedDict, cast

from bridge import names
from bridge.plan import Mode, Plan
from bridge.watching.step_told import About, Listener, Nobody, StepTold

WAITING, BLOCKED, STARTING, RUNNING = "waiting", "waiting for upstream", "starting", "running"
SHARED = "(sandboxes that steps share)"
"""The row of what can't be told apart by steps."""
COMPLETED = frozenset({"Completed", "Cached", "Skipped", "completed", "cached", "skipped"})
Row = TypedDict(
    "Row",
    {
        "step": str,
        "state": str,
        "attempt": int | Literal[""],
        "waiting (s)": int | Literal[""],
        "running (s)": int | Literal[""],
        "sandbox": str,
        "lost sandboxes": str,
        "GPU": str,
        "cost ($)": str,
        "why": str,
    },
)
"""One step, as a person reads it, by column; "" where there is nothing to say. Other releases read it in Prefect."""
COLUMNS = tuple(Row.__annotations__)


@dataclass(frozen=True, slots=True)
class Seen:
    """A step run as ZenML has it. ``start`` and ``end`` are timezone-naive UTC, as ZenML's are."""

    step: str
    status: str
    attempt: int
    start: datetime | None
    end: datetime | None
    ended: bool
    step_run: str = ""


@dataclass(slots=True)
class _Row:
    step: str
    gpu: str
    state: str
    missing: int
    attempt: int = 0
    since: float | None = None
    """When the step became ready, or its present attempt began: what of it counts is in ``state``."""
    waited: float = 0.0
    ran: float = 0.0
    sandbox: str = ""
    cost: Decimal | None = None
    lost: list[str] = field(default_factory=list)
    """The sandboxes that were lost under it, or couldn't be had: what of each."""
    why: str = ""
    box: str = ""
    """The id of the sandbox that it has for itself."""
    ended: bool = False
    isolated: bool = False
    """Whether its sandbox is its own, in a run whose other steps share one."""
    step_runs: dict[int, str] = field(default_factory=dict)
    """Their ids, by attempt."""


class Board:
    """The rows of one run, and who listens. One event loop, but for what a terminal draws: table and cost.

    ``goes_on``: an earlier process of the flow told of what ZenML knows already.
    """

    def __init__(
        self,
        plan: Plan,
        clock: Callable[[], float] = time.monotonic,
        listener: Listener | None = None,
        *,
        goes_on: bool = False,
    ) -> None:
        self._clock = clock
        self._listener: Listener = listener if listener is not None else Nobody()
        self._told = StepTold(self._listener, goes_on=goes_on)
        self._downstream: dict[str, list[str]] = {step.name: [] for step in plan.steps}
        self._upstream = plan.upstream
        self._grows = plan.mode is Mode.DYNAMIC
        self._rows: dict[str, _Row] = {}
        gpu_of_all = plan.sandbox.resources.gpu
        self._shared = plan.mode.in_one_sandbox
        self._shared_gpu = str(gpu_of_all) if gpu_of_all else ""
        self._sandbox = self._sandbox_id = ""
        self._shared_cost: Decimal | None = None
        self.sandbox_url: str | None = None
        """The page of the newest sandbox, where there is one."""
        for step in plan.steps:
            upstream = set(step.upstream)
            for above in upstream:
                self._downstream[above].append(step.name)
            gpu = step.sandbox.resources.gpu
            row = _Row(step.name, str(gpu) if gpu else "", BLOCKED if upstream else WAITING, len(upstream))
            row.since = None if upstream else clock()
            self._rows[step.name] = row

    def add(self, step: str, gpu: str = "", *, attempt: int = 1, step_run: str = "") -> None:
        """A step that nobody knew of has a sandbox of its own, or waits for it. Idempotent."""
        row = self._rows.setdefault(step, _Row(step, "", STARTING, 0))
        row.isolated, row.sandbox, row.gpu = True, "", gpu or row.gpu
        row.step_runs[attempt] = step_run

    def attempt(self, step: str, number: int, *, begun: bool = False) -> None:
        """Attempt ``number`` begins; what it waits for now is a slot or a machine. ``begun``: an earlier process of the
        flow began it."""
        row = self._rows[step]
        row.state, row.attempt = STARTING, number
        if number > 1 and not begun:
            self._listener.retried(self._about(row, number), number)

    def in_sandbox(self, step: str, sandbox_id: str, url: str | None) -> None:
        """Its sandbox is there."""
        row = self._rows[step]
        self._settle(row)
        row.state, row.sandbox = RUNNING, _link(sandbox_id, url)
        self.sandbox_url = url or self.sandbox_url
        row.box = sandbox_id
        if not row.isolated:  # whose attempts are ZenML's: seen() tells of them
            self._listener.started(self._about(row, row.attempt), row.attempt, sandbox_id)

    def lost(self, step: str, what: str) -> None:
        """Its sandbox was lost, or couldn't be had; another one follows, or the step ends."""
        row = self._rows[step]
        self._settle(row)
        row.state, row.sandbox = STARTING, ""
        row.lost.append(what)
        attempt = max(1, row.attempt)
        self._listener.lost(self._about(row, attempt), attempt, what)

    def all_lost(self, what: str) -> None:
        """The one sandbox of the whole pipeline was lost, or couldn't be had."""
        self._sandbox = self._sandbox_id = ""
        for row in self._rows.values():
            if not row.ended and not row.isolated:
                row.lost.append(what)
                if row.attempt:
                    self._listener.lost(self._about(row, row.attempt), row.attempt, what)

    def all_in_sandbox(self, sandbox_id: str, url: str | None) -> None:
        """The one sandbox of the whole pipeline is there."""
        self._sandbox, self._sandbox_id = _link(sandbox_id, url), sandbox_id
        self.sandbox_url = url or self.sandbox_url

    def attempt_over(self, step: str, failure: str | None = None) -> None:
        """The attempt is over, with ``failure`` if it failed; unless the step ends now, it waits for its retry."""
        row = self._rows[step]
        self._settle(row)
        row.state = "waiting for its retry"
        if failure is not None:
            self._listener.failed(self._about(row, row.attempt), row.attempt, failure)

    def ended(self, step: str, state: str, why: str) -> None:
        """The step ended in this state, or will never start."""
        row = self._rows[step]
        if row.ended:
            return
        self._settle(row)
        row.state, row.why, row.ended, row.since = state, "" if state in COMPLETED else why, True, None
        if state not in COMPLETED:
            return
        # Without an attempt it was over before this process began.
        if row.attempt and not (self._told.catching_up and self._shared):
            self._listener.finished(self._about(row, row.attempt), row.attempt, state)
        for below in map(self._rows.__getitem__, self._downstream.get(step, ())):
            below.missing -= 1
            if below.missing == 0 and not below.ended:
                below.state, below.since = WAITING, self._clock()

    def seen(self, step_runs: Iterable[Seen], now: datetime) -> None:
        """Take over what ZenML says of the steps."""
        for found in step_runs:
            row = self._rows.get(found.step)
            if row is None and self._grows:
                row = self._rows[found.step] = _Row(found.step, "", WAITING, 0)
            if row is None or row.ended:
                continue
            if found.step_run:
                row.step_runs[found.attempt] = found.step_run
            box = row.box if row.isolated else self._sandbox_id
            self._told.follow(partial(self._about, row), row.attempt, found.attempt, found.status, box)
            row.attempt = found.attempt
            if found.start is not None:
                row.ran = max(0.0, ((found.end or now) - found.start).total_seconds())
            if not row.isolated:
                row.sandbox = self._sandbox or row.sandbox
            if found.ended:
                row.since = None
                self.ended(found.step, found.status, "")
            else:
                if row.since is not None:
                    self._settle(row)
                    row.since = None
                row.state = found.status
        self._told.catching_up = False

    def _about(self, row: _Row, attempt: int) -> About:
        gpu = row.gpu if row.isolated or not self._shared else self._shared_gpu
        return About(row.step, gpu, row.step_runs.get(attempt, "") if row.isolated else "")

    def explain(self, step: str, why: str) -> None:
        """Say why a step ended as it did, where its end itself doesn't."""
        if step in self._rows:
            self._rows[step].why = why

    def costs(self, by_step: Mapping[str | None, Decimal]) -> None:
        """Take over what the sandboxes of each step cost so far, in dollars, by the tag of the step; None stands for
        sandboxes that steps share."""
        for row in self._rows.values():
            row.cost = by_step.get(names.modal_tag(row.step), row.cost)
        self._shared_cost = by_step.get(None, self._shared_cost)

    @property
    def cost(self) -> Decimal | None:
        """What the run cost so far, in dollars, as far as it is known."""
        known = [cost for row in list(self._rows.values()) if (cost := row.cost) is not None]
        known += [self._shared_cost] if self._shared_cost is not None else []
        return sum(known, Decimal(0)) if known else None

    def close(self, why: str) -> None:
        """The run is over: what hasn't ended never will, for ``why`` or because of what happened upstream."""
        for row in self._rows.values():  # upstream before downstream, as in the plan
            if row.ended:
                continue
            above = [name for name in self._upstream.get(row.step, ()) if self._rows[name].state not in COMPLETED]
            told = f"upstream {', '.join(above)}: {self._rows[above[0]].state}" if above else why
            self.ended(row.step, names.STATE_NOT_RUN if row.attempt == 0 else row.state, told)

    @property
    def open_steps(self) -> list[str]:
        """The steps that haven't ended: of the others :meth:`seen` wants to know nothing."""
        return [row.step for row in self._rows.values() if not row.ended]

    @property
    def progress(self) -> float:
        """Percent of the steps that have ended."""
        if not self._rows:
            return 100.0
        return 100.0 * sum(row.ended for row in self._rows.values()) / len(self._rows)

    def table(self) -> list[Row]:
        """The rows, as a person reads them; seconds are whole. Any thread may ask."""
        shown = [self._shown(row) for row in list(self._rows.values())]  # which grow meanwhile in a dynamic pipeline
        if self._shared_cost is not None:
            shown.append(row_of({"step": SHARED, "cost ($)": _dollars(self._shared_cost)}))
        return shown

    def _shown(self, row: _Row) -> Row:
        now = self._clock() - row.since if row.since is not None else 0.0
        running = row.state == RUNNING
        return {
            "step": row.step,
            "state": row.state,
            "attempt": row.attempt or "",
            "waiting (s)": round(row.waited + (0.0 if running else now)),
            "running (s)": round(row.ran + (now if running else 0.0)),
            "sandbox": row.sandbox,
            "lost sandboxes": f"{len(row.lost)}: {row.lost[-1]}" if row.lost else "",
            "GPU": row.gpu,
            "cost ($)": _dollars(row.cost) if row.cost is not None else "",
            "why": row.why,
        }

    def _settle(self, row: _Row) -> None:
        """Book the time since the last change."""
        now = self._clock()
        if row.since is not None:
            if row.state == RUNNING:
                row.ran += now - row.since
            else:
                row.waited += now - row.since
        row.since = now


def row_of(cells: Mapping[str, object]) -> Row:
    """Return the row that has these cells, and else nothing to say."""
    return cast(Row, dict.fromkeys(COLUMNS, "") | dict(cells))


def said_of(row: Row) -> str:
    """Return what there is to say of a step besides its state."""
    # Of another release the cells may be anything.
    return "; ".join(str(said) for said in (row["why"], row["lost sandboxes"]) if said)


def _dollars(cost: Decimal) -> str:
    return f"{cost:.4f}"


def _link(sandbox_id: str, url: str | None) -> str:
    return f"[{sandbox_id}]({url})" if url else sandbox_id

"""A run in a terminal: its steps, kept up to date at the bottom, while what they print scrolls by above.

Draws what :class:`bridge.watching.board.Board` knows, or what a flow elsewhere tells of its own
(:class:`bridge.watching.followed.FollowedSteps`). A run with more steps than lines shows those where something happens.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.style import Style
from rich.table import Table
from rich.text import Text

from bridge import names
from bridge.watching.board import BLOCKED, COMPLETED, SHARED, WAITING, Row, said_of

REFRESH_PER_SECOND = 4
_AROUND = 8
"""Lines that aren't steps: head, foot, what scrolls by."""
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<url>[^)]*)\)")
_STYLES = {
    "running": "cyan",
    "starting": "blue",
    BLOCKED: "dim",
    WAITING: "dim",
    "Cancelled": "yellow",
    "stopped": "yellow",
    names.STATE_NOT_RUN: "dim",
    "Failed": "bold red",
    "failed": "bold red",
}


class Steps(Protocol):
    """What is known of the steps of a run."""

    def table(self) -> Sequence[Row]:
        """A row for each, maybe one for what they share; none as long as nothing is known."""

    @property
    def cost(self) -> Decimal | None:
        """What the run cost so far, in dollars, as far as it is known."""


class LiveView:
    """The view of one run. Use as ``with``; leaving it leaves the last picture in the terminal.

    Args:
        console: A terminal.
        clock: Seconds, for the time that the run has taken.
        foot: What Ctrl-C does.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        foot: str = "Ctrl-C stops the run and ends its sandboxes.",
    ) -> None:
        self.console = console
        self._clock = clock
        self._begun = clock()
        self._steps: Steps | None = None
        self._head = ""
        self._links: Mapping[str, str | None] = {}
        self._foot = foot
        self._live = Live(
            console=console,
            get_renderable=self.picture,
            refresh_per_second=REFRESH_PER_SECOND,
            redirect_stdout=console.file.isatty(),
        )

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._foot = ""
        self._live.stop()

    def watch(self, steps: Steps, head: str, links: Mapping[str, str | None]) -> None:
        """Show these steps from now on. ``links`` are addresses by name; None is left out."""
        self._links, self._head, self._steps = links, head, steps

    def say(self, text: str) -> None:
        """Say this below the steps, instead of what Ctrl-C does."""
        self._foot = text

    def picture(self) -> Group:
        """What is to be seen now. Raises nothing: no run fails for its picture."""
        try:
            return self._picture()
        except Exception as error:
            said = f"Its steps can't be drawn: {type(error).__name__}: {error}"
            return Group(Text(self._head, "bold"), Text(said, "red"), Text(self._foot, "dim"))

    def _picture(self) -> Group:
        if self._steps is None:
            return Group(Text("The run is being prepared.", "dim"))
        rows = self._steps.table()
        steps = [row for row in rows if row["step"] != SHARED]
        title = self._title(steps, self._steps.cost)
        if not steps:
            return Group(title, Text(self._foot, "dim"))
        shown, rest = pick(steps, max(3, self.console.height - _AROUND))
        # Expanded, the columns with a ratio share what the others leave; else all shrink alike, down to "Canc…".
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("step", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("waited", justify="right")
        table.add_column("ran", justify="right")
        table.add_column("sandbox", no_wrap=True, ratio=1)
        cells = [_cells(row) for row in shown]
        if any(of_row[-1] for of_row in cells):  # else the sandboxes' ids have the room
            table.add_column("", overflow="ellipsis", no_wrap=True, ratio=2)
        for of_row in cells:
            table.add_row(*of_row[: len(table.columns)])
        return Group(title, table, *([Text(f"and {rest}", "dim")] if rest else []), Text(self._foot, "dim"))

    def _title(self, steps: Sequence[Row], cost: Decimal | None) -> Text:
        ended = sum(row["state"] in COMPLETED for row in steps)
        of_all = f"{ended} of {len(steps)} steps, " if steps else ""
        title = Text.assemble((self._head, "bold"), f"  {of_all}{_seconds(self._clock() - self._begun)}")
        for name, url in self._links.items():
            if url:
                title.append("  ").append(name, Style(link=url, underline=True))
        if cost is not None:
            title.append(f"  ${cost:.4f}")
        return title


def pick(rows: Sequence[Row], room: int) -> tuple[list[Row], str]:
    """Choose the rows that there is room for, in their order, and count the others by state.

    What runs or has gone wrong comes before what is done, and that before what only waits.
    """

    def urgency(row: Row) -> int:
        state = row["state"]
        return 2 if state in (BLOCKED, WAITING) else 1 if state in COMPLETED else 0

    numbered = sorted(range(len(rows)), key=lambda number: (urgency(rows[number]), number))
    chosen = set(numbered[:room])
    others = Counter(str(rows[number]["state"]) for number in numbered[room:])
    rest = ", ".join(f"{count} {state}" for state, count in others.most_common())
    return [rows[number] for number in sorted(chosen)], rest


def _cells(row: Row) -> list[Text]:
    state = str(row["state"])
    attempt = row["attempt"]
    tries = f" ({attempt})" if isinstance(attempt, int) and attempt > 1 else ""
    style = "green" if state in COMPLETED else _STYLES.get(state, "magenta")
    said = said_of(row).split("\n")[0]
    return [
        Text(str(row["step"])),
        Text(f"{state}{tries}", style),
        Text(_seconds(row["waiting (s)"]), "dim"),
        Text(_seconds(row["running (s)"])),
        _linked(str(row["sandbox"])),
        Text(f"{row['GPU']}  {said}".strip(), "dim" if state in COMPLETED else ""),
    ]


def _linked(text: str) -> Text:
    found = _LINK.fullmatch(text)
    return Text(found["text"], Style(link=found["url"])) if found else Text(text)


def _seconds(value: object) -> str:
    seconds = int(value) if isinstance(value, (int, float)) else 0
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}:{seconds:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

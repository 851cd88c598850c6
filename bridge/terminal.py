"""What a run in this process shows: a line when something happens, and the steps' own output; in a terminal, below
that, the steps as they are (:mod:`bridge.live`).

Importing ZenML takes the console handlers off Prefect's loggers and prints their records with every field as JSON
(zenml/logger.py, ``ZenMLConsoleHandler``). While a run lasts, Prefect's run loggers get a handler of ours.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime

from rich.console import Console
from rich.text import Text

from bridge.board import Board
from bridge.live import LiveView

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_shown: ContextVar[bool] = ContextVar("bridge_terminal", default=False)
_view: ContextVar[LiveView | None] = ContextVar("bridge_live_view", default=None)


class _RunHandler(logging.Handler):
    def __init__(self, view: LiveView | None) -> None:
        super().__init__(logging.INFO)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        try:
            who = getattr(record, "task_run_name", None) or getattr(record, "flow_run_name", None) or ""
            _write(self._view, str(who), record.getMessage())
        except Exception:
            self.handleError(record)


def _write(view: LiveView | None, who: str, text: str) -> None:
    """Print one line, or several as several."""
    now = datetime.now().strftime("%H:%M:%S")
    lines = "".join(f"{now} | {who} | {line}\n" for line in text.splitlines() or [""])
    if view is None:
        sys.stderr.write(lines)
    else:
        view.console.print(Text.from_ansi(lines.rstrip("\n")), soft_wrap=True)


def echo(step: str, line: str) -> None:
    """Print a line of a step's output, if this process shows its run."""
    if _shown.get():
        _write(_view.get(), step, line)


def watch(board: Board, head: str, links: Callable[[], Mapping[str, str | None]]) -> None:
    """Show the steps of this board, if this process shows its run in a terminal. ``links`` gives addresses by name;
    it may ask servers, and is asked only then."""
    if view := _view.get():
        view.watch(board, head, links())


def interrupted(who: str, orphan_timeout: int) -> None:
    """Say what an interruption of this process stops, if it shows its run."""
    if not _shown.get():
        return
    text = (
        "Interrupted: the run is being stopped, its steps and their sandboxes end. Once more leaves at once; sandboxes "
        f"then end by themselves, at the latest {orphan_timeout} s later."
    )
    _write(_view.get(), who, text)
    if view := _view.get():
        view.say("Stopping. Ctrl-C once more leaves at once.")


def _terminal() -> LiveView | None:
    console = Console(stderr=True, highlight=False)
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else None


@contextlib.contextmanager
def show_run() -> Iterator[None]:
    """Show the run that is started inside. Leaves logging as it was."""
    view = _terminal()
    handler = _RunHandler(view)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.propagate) for logger in loggers]
    # httpx tells INFO of every request that Prefect's client makes.
    requests = logging.getLogger("httpx")
    requests_level = requests.level
    requests.setLevel(logging.WARNING)
    shown, viewed = _shown.set(True), _view.set(view)
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        with view or contextlib.nullcontext():
            yield
    finally:
        for logger, propagate in before:
            logger.removeHandler(handler)
            logger.propagate = propagate
        requests.setLevel(requests_level)
        _view.reset(viewed)
        _shown.reset(shown)

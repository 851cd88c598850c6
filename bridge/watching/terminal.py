"""What a run in this process shows: a line when something happens, and the steps' own output; in a terminal, below
that, the steps as they are (:mod:`bridge.watching.live`). Of a run that a worker carries out, what can be told from
afar.

Importing ZenML takes the console handlers off Prefect's loggers and prints their records with every field as JSON
(zenml/logger.py, ``ZenMLConsoleHandler``). While a run lasts, Prefect's run loggers get a handler of ours. It also
writes to the terminal past whatever ``rich`` put in place of ``sys.stdout``, so that its lines and the picture of the
steps would be in each other's way: while one waits in a terminal, our own loggers have that handler too.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context, ContextVar
from datetime import datetime
from typing import TextIO, cast

from rich.console import Console
from rich.text import Text
from zenml.logger import ZenMLConsoleHandler, ZenMLLoggingHandler

from bridge.watching.live import LiveView, Steps
from bridge.watching.quiet import only_warn_of_requests

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_shown: ContextVar[bool] = ContextVar("bridge_terminal", default=False)
_view: ContextVar[LiveView | None] = ContextVar("bridge_live_view", default=None)


_zenmls_log = ZenMLLoggingHandler()


class _Unheard:
    """A terminal, past ZenML: what a run writes to stderr, which it knows by the context, is kept in the run's log
    ``client``. That is to have the lines, not the picture that is drawn anew below each."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self.encoding = terminal.encoding

    def write(self, text: str) -> int:
        return Context().run(self._terminal.write, text)

    def flush(self) -> None:
        self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()


class _RunHandler(logging.Handler):
    def __init__(self, view: LiveView | None, run: str = "") -> None:
        super().__init__(logging.INFO)
        self._view = view
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        try:
            who = getattr(record, "task_run_name", None) or getattr(record, "flow_run_name", None) or self._run
            _write(self._view, str(who), record.getMessage())
        except Exception:
            self.handleError(record)


def _write(view: LiveView | None, who: str, text: str) -> None:
    """Print one line, or several as several."""
    now = datetime.now().strftime("%H:%M:%S")
    lines = "".join(f"{now} | {who} | {line}\n" for line in text.splitlines() or [""])
    if view is None:
        sys.stderr.write(lines)
        return
    view.console.print(Text.from_ansi(lines.rstrip("\n")), soft_wrap=True)
    _zenmls_log.handle(logging.LogRecord(__name__, logging.INFO, "", 0, "%s", (lines,), None))


def echo(step: str, line: str) -> None:
    """Print a line of a step's output, if this process shows its run."""
    if _shown.get():
        _write(_view.get(), step, line)


def watch(steps: Steps, head: str, links: Callable[[], Mapping[str, str | None]]) -> bool:
    """Show these steps, if this process shows its run in a terminal; return whether it does. ``links`` gives addresses
    by name; it may ask servers, and is asked only then."""
    view = _view.get()
    if view is not None:
        view.watch(steps, head, links())
    return view is not None


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


def _terminal() -> Console | None:
    console = Console(file=cast(TextIO, _Unheard(sys.stderr)), highlight=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def show_once() -> None:
    """In the process of a flow that nobody waits for, keep ZenML from printing what Prefect prints. Idempotent.

    There each of them has a console handler at the root, and all lines would be shown twice.
    """
    if _shown.get():
        return
    for handler in logging.root.handlers:
        if isinstance(handler, ZenMLConsoleHandler):
            handler.addFilter(_prefect_is_silent)


def _prefect_is_silent(record: logging.LogRecord) -> bool:
    # Here, where there is a flow: the step operator comes without Prefect.
    from prefect.logging.handlers import PrefectConsoleHandler

    return not any(isinstance(handler, PrefectConsoleHandler) for handler in logging.root.handlers)


@contextlib.contextmanager
def show_waiting(run: str) -> Iterator[None]:
    """Show a run of this name that a worker carries out, while it is waited for inside. Leaves logging as it was."""
    console = _terminal()
    if console is None:
        yield
        return
    view = LiveView(console, foot="Ctrl-C stops waiting; the run goes on.")
    ours = logging.getLogger("bridge")
    handlers, propagate = ours.handlers, ours.propagate
    ours.handlers, ours.propagate = [_RunHandler(view, run)], False
    viewed = _view.set(view)
    try:
        with view:
            yield
    finally:
        _view.reset(viewed)
        ours.handlers, ours.propagate = handlers, propagate


@contextlib.contextmanager
def show_run() -> Iterator[None]:
    """Show the run that is started inside. Leaves logging as it was, but for httpx: Prefect sends the last lines when
    it is over."""
    console = _terminal()
    view = LiveView(console) if console is not None else None
    handler = _RunHandler(view)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.propagate) for logger in loggers]
    only_warn_of_requests()
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
        _view.reset(viewed)
        _shown.reset(shown)

"""What a run in this process shows: a line when something happens, and the steps' own output; in a terminal, below
that, the steps as they are (:mod:`bridge.watching.live`). Of a run that a worker carries out, what can be told from
afar.

Importing ZenML takes the console handlers off Prefect's loggers and prints their records with every field as JSON
(zenml/logger.py, ``ZenMLConsoleHandler``). While a run lasts, Prefect's run loggers get a handler of ours. It also
writes to the terminal past whatever ``rich`` put in place of ``sys.stdout``, so that its lines and the picture of the
steps would be in each other's way: while one waits in a terminal, our own loggers have that handler too.

Nothing here fails a run: whoever reads along may have gone, as `tee` at the Ctrl-C that stops what it reads from.
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
_shown: ContextVar[_Screen | None] = ContextVar("bridge_terminal", default=None)
_view: ContextVar[LiveView | None] = ContextVar("bridge_live_view", default=None)


_zenmls_log = ZenMLLoggingHandler()
_logger = logging.getLogger(__name__)


class _Unheard:
    """A terminal, past ZenML: what a run writes to stderr, which it knows by the context, is kept in the run's log
    ``client``. That is to have the lines, not the picture that is drawn anew below each.

    Where the terminal takes nothing, what is written is lost: ``rich`` would keep it, or leave the process.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self.encoding = terminal.encoding
        self.trouble: Exception | None = None
        """Why it took nothing, the last time that it didn't."""

    def write(self, text: str) -> int:
        try:
            return Context().run(self._terminal.write, text)
        except (OSError, ValueError) as error:  # the latter: it was closed here
            self.trouble = error
            return len(text)

    def flush(self) -> None:
        try:
            self._terminal.flush()
        except (OSError, ValueError) as error:
            self.trouble = error

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()


class _Screen:
    """Where the lines of a run are shown: above its steps in a terminal, or else simply on stderr."""

    def __init__(self, view: LiveView | None) -> None:
        self.view = view
        self._told = False

    def write(self, who: str, text: str) -> None:
        """Print one line, or several as several. Raises nothing: what it can't show it tells of, once."""
        now = datetime.now().strftime("%H:%M:%S")
        lines = "".join(f"{now} | {who} | {line}\n" for line in text.splitlines() or [""])
        try:
            trouble = self._show(lines)
        except Exception as error:
            trouble = error
        if trouble is not None and not self._told:
            self._told = True  # first: what is logged is shown too
            what = f"{type(trouble).__name__}: {trouble}"
            _logger.warning("What this process says of the run can't be shown any more (%s); the run goes on.", what)

    def _show(self, lines: str) -> Exception | None:
        if self.view is None:
            sys.stderr.write(lines)
            return None
        console = self.view.console
        console.print(_coloured(lines.rstrip("\n")), soft_wrap=True)
        _zenmls_log.handle(logging.LogRecord(__name__, logging.INFO, "", 0, "%s", (lines,), None))
        return console.file.trouble if isinstance(console.file, _Unheard) else None


def _coloured(text: str) -> Text:
    try:
        return Text.from_ansi(text)
    except ValueError:
        return Text(text)  # a step may print what looks like a colour and is none


class _RunHandler(logging.Handler):
    def __init__(self, screen: _Screen, run: str = "") -> None:
        super().__init__(logging.INFO)
        self._screen = screen
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        try:
            who = getattr(record, "task_run_name", None) or getattr(record, "flow_run_name", None) or self._run
            self._screen.write(str(who), record.getMessage())
        except Exception:
            self.handleError(record)


def echo(step: str, line: str) -> None:
    """Print a line of a step's output, if this process shows its run."""
    if screen := _shown.get():
        screen.write(step, line)


def watch(steps: Steps, head: str, links: Callable[[], Mapping[str, str | None]]) -> bool:
    """Show these steps, if this process shows its run in a terminal; return whether it does. ``links`` gives addresses
    by name; it may ask servers, and is asked only then."""
    view = _view.get()
    if view is not None:
        view.watch(steps, head, _asked(links))
    return view is not None


def _asked(links: Callable[[], Mapping[str, str | None]]) -> Mapping[str, str | None]:
    try:
        return links()
    except Exception as error:
        _logger.warning("The steps are shown without links to their pages: %s: %s", type(error).__name__, error)
        return {}


def interrupted(who: str, orphan_timeout: int) -> None:
    """Say what an interruption of this process stops, if it shows its run."""
    screen = _shown.get()
    if screen is None:
        return
    text = (
        "Interrupted: the run is being stopped, its steps and their sandboxes end. Once more leaves at once; sandboxes "
        f"then end by themselves, at the latest {orphan_timeout} s later."
    )
    screen.write(who, text)
    if screen.view is not None:
        screen.view.say("Stopping. Ctrl-C once more leaves at once.")


def _terminal() -> Console | None:
    console = Console(file=cast(TextIO, _Unheard(sys.stderr)), highlight=False)
    # To `rich` a log is a terminal too where FORCE_COLOR is set, as many do for their CI.
    return console if console.is_terminal and console.file.isatty() and not console.is_dumb_terminal else None


def show_once() -> None:
    """In the process of a flow that nobody waits for, keep ZenML from printing what Prefect prints. Idempotent.

    There each of them has a console handler at the root, and all lines would be shown twice.
    """
    if _shown.get() is not None:
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
    ours.handlers, ours.propagate = [_RunHandler(_Screen(view), run)], False
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
    screen = _Screen(view)
    handler = _RunHandler(screen)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.propagate) for logger in loggers]
    only_warn_of_requests()
    shown, viewed = _shown.set(screen), _view.set(view)
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

"""What a run in this process shows in the terminal: a line when something happens, and the steps' own output.

Importing ZenML takes the console handlers off Prefect's loggers and prints their records with every field as JSON
(zenml/logger.py, ``ZenMLConsoleHandler``). While a run lasts, Prefect's run loggers get a handler of ours.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime

_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_shown: ContextVar[bool] = ContextVar("bridge_terminal", default=False)


class _RunHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            who = getattr(record, "task_run_name", None) or getattr(record, "flow_run_name", None) or ""
            write(str(who), record.getMessage())
        except Exception:
            self.handleError(record)


def write(who: str, text: str) -> None:
    """Print one line, or several as several."""
    now = datetime.now().strftime("%H:%M:%S")
    sys.stderr.write("".join(f"{now} | {who} | {line}\n" for line in text.splitlines() or [""]))


def echo(step: str, line: str) -> None:
    """Print a line of a step's output, if this process shows its run."""
    if _shown.get():
        write(step, line)


@contextlib.contextmanager
def show_run() -> Iterator[None]:
    """Show the run that is started inside. Leaves logging as it was."""
    handler = _RunHandler(logging.INFO)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.propagate) for logger in loggers]
    # httpx tells INFO of every request that Prefect's client makes.
    requests = logging.getLogger("httpx")
    requests_level = requests.level
    requests.setLevel(logging.WARNING)
    token = _shown.set(True)
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in before:
            logger.removeHandler(handler)
            logger.propagate = propagate
        requests.setLevel(requests_level)
        _shown.reset(token)

"""What this package itself warns of during a run, in the run's own logs: the line that explains a pause.

Prefect ships the records of its run loggers only; those of other loggers stay on the machine on which the flow runs.
"""

from __future__ import annotations

import logging

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger


class _ToRunLogger(logging.Handler):
    """Hands a record to the logger of the run in whose context it was written; outside of one, to everybody."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            run_logger = get_run_logger()
        except MissingContextError:
            logging.getLogger().handle(record)
        else:
            run_logger.log(record.levelno, "%s", record.getMessage())


def warn_in_run_logs() -> None:
    """From now on put what is warned of in a run into its logs. Idempotent; nothing changes outside of runs."""
    ours = logging.getLogger("bridge")
    if not any(isinstance(handler, _ToRunLogger) for handler in ours.handlers):
        ours.addHandler(_ToRunLogger())
        ours.propagate = False  # else the terminal would show it twice

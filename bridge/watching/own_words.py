"""What this package itself warns of during a run, in the run's own logs: the line that explains a pause.

Prefect ships the records of its run loggers only; those of other loggers stay on the machine on which the flow runs.
"""

from __future__ import annotations

import logging

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

_ours = logging.getLogger("bridge")


class _ToRunLogger(logging.Handler):
    """Hands a record to the logger of the run in whose context it was written; outside of one, to everybody.

    The latter only where that hasn't been seen to: once is enough.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            run_logger = get_run_logger()
        except MissingContextError:
            if _ours.propagate:
                return
            for handler in logging.getLogger().handlers:
                if handler not in _ours.handlers and record.levelno >= handler.level:
                    handler.handle(record)
        else:
            run_logger.log(record.levelno, "%s", record.getMessage())


def warn_in_run_logs() -> None:
    """From now on put what is warned of in a run into its logs. Idempotent; nothing changes outside of runs."""
    if not any(isinstance(handler, _ToRunLogger) for handler in _ours.handlers):
        _ours.addHandler(_ToRunLogger())
    _ours.propagate = False  # else the terminal would show it twice

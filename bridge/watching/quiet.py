"""What other libraries log, and nobody who runs a pipeline wants to read."""

from __future__ import annotations

import logging

_requests = logging.getLogger("httpx")


def only_warn_of_requests() -> None:
    """Keep from the terminal and from run logs what httpx tells of each request, where nobody has asked for it.

    ZenML has INFO of all libraries shown. For the entrance of a program, or of a run; idempotent.
    """
    _requests.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    # Asked each time: ZenML is imported later, and sets what it was told to show then.
    asked_for = _requests.level != logging.NOTSET or _requests.isEnabledFor(logging.DEBUG)
    return asked_for or record.levelno >= logging.WARNING

"""Whether ZenML couldn't be asked, which says nothing of what was asked. Needs nothing that a sandbox may lack."""

from __future__ import annotations

import requests

_STATUSES = (429, 500, 502, 503, 504)
"""500 says that something failed that isn't the asker's, and mostly passes: a database that fails over."""


def couldnt_ask(error: BaseException) -> bool:
    """Whether ``error`` says that ZenML couldn't be asked, rather than what it answered."""
    if isinstance(error, requests.exceptions.HTTPError):
        return error.response is not None and error.response.status_code in _STATUSES
    # The last is what a server that answers 503 again and again comes to: ZenML's client asks it ten times.
    away = (requests.exceptions.ConnectionError, requests.exceptions.Timeout, requests.exceptions.RetryError)
    if isinstance(error, away):
        return True
    # By name: a client of a ZenML server has no SQLAlchemy, which only zenml[local] brings.
    if type(error).__module__.startswith("sqlalchemy") and type(error).__name__ == "OperationalError":
        return True
    # ZenML's REST store turns what it can't name into a RuntimeError with the status in its text.
    return isinstance(error, RuntimeError) and any(f"{code}" in str(error)[:80] for code in (502, 503, 504))

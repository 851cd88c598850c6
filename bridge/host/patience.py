"""How long a step's own process waits for ZenML's server and for the artifact store when they are away.

ZenML's client gives up after half a minute of refused connections. A step that comes to its end in an outage would
fail by that, whatever it has worked for. Imports ZenML.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import requests
from zenml.client import Client
from zenml.zen_stores.base_zen_store import BaseZenStore

from bridge.host.fresh_keys import use_fresh_keys
from bridge.host.late_heartbeat import LateHeartbeat

T = TypeVar("T")

OPEN_SECONDS = 120.0
"""How long what a step needs before it begins is asked for again: a server that can't be reached from here at all
looks the same, and somebody waits to be told."""
_REFUSALS = 40
"""Together more than six minutes of refused connections in one request."""
_PAUSE_SECONDS = 5.0

_logger = logging.getLogger(__name__)


def open_store() -> BaseZenStore:
    """Open ZenML's store, with :func:`bridge.host.fresh_keys.use_fresh_keys`.

    Raises what ZenML raises where the server stays away, and at once where it answers no.
    """

    def unreachable(error: Exception) -> bool:
        # ZenML makes a RuntimeError of it (zenml/zen_stores/rest_zen_store.py, _initialize).
        return isinstance(error.__cause__ or error, requests.exceptions.ConnectionError)

    store = patiently("ZenML's server can't be reached", lambda: Client().zen_store, unreachable)
    use_fresh_keys(store)
    return store


def ride_out_outages() -> None:
    """Open ZenML's store and let every request of this process wait for a server that is away."""
    # Its total would count before all others do.
    use_fresh_keys(open_store(), LateHeartbeat, total=None, connect=_REFUSALS)


def download(what: str, work: Callable[[], None]) -> None:
    """Download something from the artifact store. Raises what the store raises where it stays away, and at once where
    the store answers that there is no such thing, or none for us."""

    def may_come_back(error: Exception) -> bool:
        return not isinstance(error, (FileNotFoundError, PermissionError, ImportError))

    patiently(f"{what} can't be downloaded", work, may_come_back)


def patiently(
    what: str,
    work: Callable[[], T],
    may_come_back: Callable[[Exception], bool],
    seconds: float = OPEN_SECONDS,
    pause: float = _PAUSE_SECONDS,
) -> T:
    """Return what the work returns, tried again for so many seconds; ``what`` is said of a try in vain.

    Raises what it raises then, and at once what ``may_come_back`` says no to. A loop of our own, since sandboxes have
    no tenacity.
    """
    give_up = time.monotonic() + seconds
    while True:
        try:
            return work()
        except Exception as error:
            if time.monotonic() > give_up or not may_come_back(error):
                raise
            _logger.warning("%s (%s: %s); trying again.", what, type(error).__name__, error)
        time.sleep(pause)  # nothing tells that it is back

"""How long a step's own process waits for ZenML's server and for the artifact store when they are away.

ZenML's client gives up after half a minute of refused connections. A step that comes to its end in an outage would
fail by that, whatever it has worked for. Imports ZenML.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from zenml.client import Client
from zenml.constants import HEARTBEAT, STEPS
from zenml.enums import ExecutionStatus
from zenml.zen_stores.base_zen_store import BaseZenStore
from zenml.zen_stores.rest_zen_store import RestZenStore

T = TypeVar("T")

OPEN_SECONDS = 120.0
"""How long what a step needs before it begins is asked for again: a server that can't be reached from here at all
looks the same, and somebody waits to be told."""
FIRST_HEARTBEAT_SECONDS = 1.0
"""How long a step's process goes on before its first heartbeat, which ZenML's worker makes at once: a step that has
ended by then needs none, and the server has one request less of it. The others come every 15 s, as ever."""
_REFUSALS = 40
_LONGEST_PAUSE_SECONDS = 10.0
"""Together more than six minutes of refused connections in one request."""
_BUSY = 10
"""How often, in more than a minute, a server that calls itself too busy is asked before the request is made anew."""
_KEYS = 5
_KEY = "Idempotency-Key"
_WHOLE_SECONDS = timedelta(seconds=1)
"""How far a time may be from what was sent: MySQL rounds it."""
_PAUSE_SECONDS = 5.0

_logger = logging.getLogger(__name__)


def open_store() -> BaseZenStore:
    """Open ZenML's store, with :func:`use_fresh_keys`.

    Raises what ZenML raises where the server stays away, and at once where it answers no.
    """

    def unreachable(error: Exception) -> bool:
        # ZenML makes a RuntimeError of it (zenml/zen_stores/rest_zen_store.py, _initialize).
        return isinstance(error.__cause__ or error, requests.exceptions.ConnectionError)

    store = patiently("ZenML's server can't be reached", lambda: Client().zen_store, unreachable)
    use_fresh_keys(store)
    return store


def use_fresh_keys(store: BaseZenStore, first_heartbeat: float = 0.0, **retries: int | None) -> None:
    """Let the requests of this process be made anew where a killed server has left them open (:class:`FreshKeys`).

    ZenML's client alone would ask such a one for eight minutes, in which nothing is known, and a flow that is being
    cancelled doesn't hear of it. ``first_heartbeat`` is how many seconds that waits. ``retries`` are further numbers
    of urllib3's ``Retry``.
    """
    if not isinstance(store, RestZenStore):
        return
    for prefix, adapter in list(store.session.adapters.items()):
        if isinstance(adapter, HTTPAdapter):
            patience: Retry = adapter.max_retries.new(status=_BUSY, **retries)
            patience.backoff_max = _LONGEST_PAUSE_SECONDS
            store.session.mount(prefix, FreshKeys(patience, store.config.connection_pool_size, first_heartbeat))


def ride_out_outages() -> None:
    """Open ZenML's store and let every request of this process wait for a server that is away."""
    # Its total would count before all others do.
    use_fresh_keys(open_store(), FIRST_HEARTBEAT_SECONDS, total=None, connect=_REFUSALS)


class FreshKeys(HTTPAdapter):
    """Sends a request to ZenML's server, and makes it anew where the server calls it too busy again and again.

    ZenML keeps a transaction for each request's key. One that a killed server left unfinished stays so, and whoever
    asks again with that key is told 429 for ever (zenml/zen_server/request_management.py). What the request was to
    make may have been made all the same: then that is the answer, since ZenML would refuse a second one, or count it as
    another attempt of the step. Raises what requests raises, after several keys.

    ``first_heartbeat`` is how many seconds the first heartbeat of a step waits, on the thread of ZenML's that makes it.
    """

    def __init__(self, retries: Retry, connections: int, first_heartbeat: float = 0.0) -> None:
        super().__init__(max_retries=retries, pool_maxsize=connections)
        self._first_heartbeat = first_heartbeat

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send it. Raises what requests raises."""
        if self._first_heartbeat and str(request.url).endswith(HEARTBEAT):
            wait, self._first_heartbeat = self._first_heartbeat, 0.0
            time.sleep(wait)  # a daemon of ZenML's sleeps here, which nobody waits for
        for _ in range(_KEYS - 1):
            try:
                return super().send(request, *args, **options)
            except requests.exceptions.RetryError as error:
                if _KEY not in request.headers:
                    raise
                if (made := self._made(request, *args, **options)) is not None:
                    _logger.warning("ZenML's server is too busy for a request (%s), and has done what it asks.", error)
                    return made
                _logger.warning("ZenML's server is too busy for a request (%s); it is made anew.", error)
                request.headers[_KEY] = str(uuid4())
        return super().send(request, *args, **options)

    def _made(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response | None:
        """What a request has made, as the server would have answered; None where it has made nothing that we'd find."""
        is_json = request.headers.get("Content-Type") == "application/json"
        if request.method != "POST" or not is_json or not isinstance(request.body, (str, bytes)):
            return None
        asked, url = json.loads(request.body), str(request.url).partition("?")[0]
        if not isinstance(asked, dict):
            return None

        def get(url: str, **query: Any) -> requests.Response:
            kept = {name: value for name, value in request.headers.items() if not name.startswith("Content-")}
            prepared = requests.Request("GET", url, {**kept, _KEY: str(uuid4())}, params=query).prepare()
            return self.send(prepared, *args, **options)

        if not url.endswith(STEPS):
            found = get(f"{url}/{asked['id']}") if "id" in asked else None  # of logs: who asks names them
            return found if found is not None and found.ok else None
        name = "oneof:" + json.dumps([asked["name"]])
        newest = get(
            url,
            project=asked["project"],
            pipeline_run_id=asked["pipeline_run_id"],
            name=name,
            sort_by="desc:version",
            size=1,
        )
        items = newest.json()["items"] if newest.ok else []
        if not items or not _is_the_one(items[0]["body"], asked):
            return None
        found = get(f"{url}/{items[0]['id']}")
        # A server that was killed before it had written the inputs down has made nothing that could be run.
        return found if found.ok and set(asked["inputs"]) <= set(found.json()["resources"]["inputs"]) else None


def _is_the_one(made: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a step run is the one that was asked for, rather than that of an earlier attempt."""
    statuses = {asked["status"]} | ({ExecutionStatus.RETRYING} if asked["status"] == ExecutionStatus.FAILED else set())
    return made["status"] in statuses and abs(_time(made) - _time(asked)) <= _WHOLE_SECONDS


def _time(step_run: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(step_run["start_time"].replace("Z", "+00:00")).replace(tzinfo=None)


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

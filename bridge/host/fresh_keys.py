"""Requests to a ZenML server that is in trouble: made anew, or told from those that it has answered. Imports ZenML."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from zenml.constants import STEPS
from zenml.enums import ExecutionStatus
from zenml.zen_stores.base_zen_store import BaseZenStore
from zenml.zen_stores.rest_zen_store import RestZenStore

_LONGEST_PAUSE_SECONDS = 10.0
"""Between two tries of one request."""
_BUSY = 10
"""How often, in more than a minute, a server that calls itself too busy is asked before the request is made anew."""
_KEYS = 5
_KEY = "Idempotency-Key"
_MOST_SAID = 500
_WHOLE_SECONDS = timedelta(seconds=1)
"""How far a time may be from what was sent: MySQL rounds it."""

_logger = logging.getLogger(__name__)


class FreshKeys(HTTPAdapter):
    """Sends a request to ZenML's server, and makes it anew where the server calls it too busy again and again.

    ZenML keeps a transaction for each request's key. One that a killed server left unfinished stays so, and whoever
    asks again with that key is told 429 for ever (zenml/zen_server/request_management.py). What the request was to
    make may have been made all the same: then that is the answer, since ZenML would refuse a second one, or count it as
    another attempt of the step. Raises what requests raises, after several keys.

    A 500 (the server's database is away, or its pool of connections empty) becomes an ``HTTPError``, in which the
    status can be seen: ZenML's client would make a ``RuntimeError`` without it, like many an answer. Not where
    something is to be made, which may have been made all the same.
    """

    def __init__(self, retries: Retry, connections: int) -> None:
        super().__init__(max_retries=retries, pool_maxsize=connections)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send it. Raises what requests raises."""
        answer = self._answered(request, *args, **options)
        if answer.status_code == requests.codes.internal_server_error and request.method != "POST":
            raise requests.exceptions.HTTPError(_said(answer), response=answer, request=request)
        return answer

    def _answered(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
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
            return self._answered(prepared, *args, **options)

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
        if not found.ok:
            return None
        if set(asked["inputs"]) <= set(found.json()["resources"]["inputs"]):
            return found
        _logger.warning(
            "ZenML's server was killed while it wrote down that step `%s` begins: the step run has no inputs, so it "
            "can't be run. That costs one of the step's own retries; without one the step fails.",
            asked["name"],
        )
        return None


def _said(answer: requests.Response) -> str:
    return f"ZenML's server answered {answer.status_code}: {answer.text[:_MOST_SAID]}"


def _is_the_one(made: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a step run is the one that was asked for, rather than that of an earlier attempt."""
    statuses = {asked["status"]} | ({ExecutionStatus.RETRYING} if asked["status"] == ExecutionStatus.FAILED else set())
    return made["status"] in statuses and abs(_time(made) - _time(asked)) <= _WHOLE_SECONDS


def _time(step_run: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(step_run["start_time"].replace("Z", "+00:00")).replace(tzinfo=None)


def use_fresh_keys(store: BaseZenStore, adapter: type[FreshKeys] = FreshKeys, **retries: int | None) -> None:
    """Let the requests of this process be made anew where a killed server has left them open (:class:`FreshKeys`).

    ZenML's client alone would ask such a one for eight minutes, in which nothing is known, and a flow that is being
    cancelled doesn't hear of it. ``retries`` are further numbers of urllib3's ``Retry``.
    """
    if not isinstance(store, RestZenStore):
        return
    for prefix, before in list(store.session.adapters.items()):
        if isinstance(before, HTTPAdapter):
            patience: Retry = before.max_retries.new(status=_BUSY, **retries)
            patience.backoff_max = _LONGEST_PAUSE_SECONDS
            store.session.mount(prefix, adapter(patience, store.config.connection_pool_size))

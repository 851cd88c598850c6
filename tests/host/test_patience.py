"""What a step's process waits for, at a real ZenML server."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from bridge.host.patience import FreshKeys
from tests.databases import PLACES
from tests.servers import zenml_server

BUSY = Retry(total=None, status=2, backoff_factor=0.05, status_forcelist=[429], allowed_methods=["POST"])


def leave_open(database: Path, key: str, user: str, url: str) -> None:
    """A request's transaction, as a server leaves it that is killed in the middle of the request."""
    with sqlite3.connect(database) as connection:
        connection.execute(
            "INSERT INTO api_transaction (id, created, updated, method, url, completed, user_id)"
            " VALUES (?, datetime(), datetime(), 'POST', ?, 0, ?)",
            (UUID(key).hex, url, UUID(user).hex),
        )
    connection.close()


def test_a_request_whose_server_was_killed_over_it_is_made_anew(tmp_path: Path) -> None:
    server = zenml_server(tmp_path).start()
    try:
        with requests.Session() as session:
            login = session.post(f"{server.url}/api/v1/login", data={"username": "default", "password": ""})
            session.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
            user = session.get(f"{server.url}/api/v1/current-user").json()["id"]
            key, url = str(uuid4()), f"{server.url}/api/v1/tags"
            leave_open(tmp_path / PLACES["zenml"], key, user, url)
            asked = {"url": url, "headers": {"Idempotency-Key": key}, "json": {"name": "made-once", "color": "blue"}}

            session.mount("http://", HTTPAdapter(max_retries=BUSY))
            with pytest.raises(requests.exceptions.RetryError):
                session.post(**asked)

            session.mount("http://", FreshKeys(BUSY, 1))
            answer = session.post(**asked)
            assert (answer.status_code, answer.json()["name"]) == (200, "made-once"), answer.text
    finally:
        server.stop()

"""What a step's process waits for, at a real ZenML server."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from zenml.models import StepRunResponse

from bridge.host.fresh_keys import FreshKeys
from bridge.host.late_heartbeat import LateHeartbeat
from bridge.host.preload import Loaded
from bridge.host.store import Store
from bridge.zenml_side import zenml_calls
from tests.databases import PLACES
from tests.host.conftest import Job, Zen
from tests.serving import serving_at

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


@dataclass
class Asked:
    """A request of a step's process whose server was killed over it."""

    zen: Zen
    session: requests.Session
    user: str

    def make(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the server had done of it."""
        answer = self.session.post(f"{self.zen.store['ZENML_STORE_URL']}{path}", json=body)
        assert answer.ok, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def again(self, path: str, body: dict[str, Any]) -> requests.Response:
        key, url = str(uuid4()), f"{self.zen.store['ZENML_STORE_URL']}{path}"
        leave_open(self.zen.home / PLACES["zenml"], key, self.user, url)
        self.session.mount("http://", HTTPAdapter(max_retries=BUSY))
        with pytest.raises(requests.exceptions.RetryError):
            self.session.post(url, headers={"Idempotency-Key": key}, json=body)
        self.session.mount("http://", FreshKeys(BUSY, 1))
        return self.session.post(url, headers={"Idempotency-Key": key}, json=body)

    def step_run(self, job: Job, name: str, **more: object) -> dict[str, Any]:
        run = self.session.get(f"{self.zen.store['ZENML_STORE_URL']}/api/v1/runs/{job.run}").json()
        return {
            "name": name,
            "pipeline_run_id": job.run,
            "project": run["body"]["project_id"],
            "status": "running",
            "start_time": datetime.now(timezone.utc).replace(tzinfo=None).isoformat(),
            "inputs": {},
            **more,
        }


@pytest.fixture
def asked(served_zen: Zen) -> Iterator[Asked]:
    url = served_zen.store["ZENML_STORE_URL"]
    with requests.Session() as session:
        login = session.post(f"{url}/api/v1/login", data={"username": "default", "password": ""})
        session.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
        yield Asked(served_zen, session, session.get(f"{url}/api/v1/current-user").json()["id"])


def test_a_request_whose_server_was_killed_over_it_is_made_anew(asked: Asked) -> None:
    answer = asked.again("/api/v1/tags", {"name": "made-once", "color": "blue"})
    assert (answer.status_code, answer.json()["name"]) == (200, "made-once"), answer.text


@pytest.mark.parametrize(
    ("pipeline", "step"),
    [
        pytest.param("chain", "one", id="once"),
        pytest.param("retried", "fail_first", id="thrice", marks=pytest.mark.slow),  # the earlier attempt below
    ],
)
def test_a_step_run_that_was_made_before_the_server_was_killed_is_the_answer(
    asked: Asked, tmp_path: Path, pipeline: str, step: str
) -> None:
    """A second one would be refused, or take one of the step's own retries."""
    job = asked.zen.submit(pipeline, tmp_path)
    body = asked.step_run(job, step)
    made = asked.make("/api/v1/steps", body)
    answer = asked.again("/api/v1/steps", body)
    assert answer.status_code == 200, answer.text
    assert StepRunResponse.model_validate(answer.json()) == StepRunResponse.model_validate(made)
    assert job.statuses()[1] == {step: ["running"]}


def test_the_step_run_of_an_earlier_attempt_is_no_answer(asked: Asked, tmp_path: Path) -> None:
    job = asked.zen.submit("retried", tmp_path)
    asked.make("/api/v1/steps", asked.step_run(job, "fail_first", status="failed"))
    answer = asked.again("/api/v1/steps", asked.step_run(job, "fail_first"))
    assert answer.json()["body"]["version"] == 2, answer.text
    assert job.statuses()[1] == {"fail_first": ["retried", "running"]}


def test_a_step_run_without_its_inputs_is_no_answer(
    asked: Asked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server was killed between the two."""
    job = asked.zen.submit("chain", tmp_path)
    body = asked.step_run(job, "one")
    asked.make("/api/v1/steps", body)
    answer = asked.again("/api/v1/steps", {**body, "inputs": {"left": [str(uuid4())]}})
    assert answer.status_code == 409, answer.text
    assert "step `one` begins: the step run has no inputs" in caplog.text


@pytest.mark.slow  # a step run that was made is found likewise
def test_logs_that_were_made_before_the_server_was_killed_are_the_answer(asked: Asked, tmp_path: Path) -> None:
    job = asked.zen.submit("retried", tmp_path)
    stores = asked.session.get(f"{asked.zen.store['ZENML_STORE_URL']}/api/v1/components?type=artifact_store").json()
    body = {
        "id": str(uuid4()),
        "project": asked.step_run(job, "fail_first")["project"],
        "uri": "/logs",
        "source": "step",
        "pipeline_run_id": job.run,
        "artifact_store_id": stores["items"][0]["id"],
    }
    made = asked.make("/api/v1/logs", body)
    answer = asked.again("/api/v1/logs", body)
    assert (answer.status_code, answer.json()["id"]) == (200, made["id"]), answer.text


async def test_the_scheduler_asks_anew_where_the_server_was_too_busy(asked: Asked) -> None:
    """Such a request fails after minutes, the next one has a key of its own: no reason to end the whole pipeline."""
    key, url = str(uuid4()), f"{asked.zen.store['ZENML_STORE_URL']}/api/v1/tags"
    leave_open(asked.zen.home / PLACES["zenml"], key, asked.user, url)
    asked.session.mount("http://", HTTPAdapter(max_retries=BUSY))
    keys = [str(uuid4()), key]

    def ask() -> int:
        body = {"name": "asked-anew", "color": "blue"}
        return asked.session.post(url, headers={"Idempotency-Key": keys.pop()}, json=body).status_code

    store = Store(Loaded(snapshot=None, run=None, stack=None))  # it has no question of its own here
    try:
        assert await store._ask(ask) == 200
    finally:
        store.close()


def test_only_the_first_heartbeat_waits() -> None:
    """A step that has ended by then needs none; what it asks for meanwhile doesn't wait for that."""
    heard: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server, requests.Session() as session:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        session.mount("http://", LateHeartbeat(Retry(0), 2))
        url = f"http://127.0.0.1:{server.server_port}"
        begun = time.monotonic()
        first = threading.Thread(target=session.put, args=(f"{url}/api/v1/steps/1/heartbeat",))
        first.start()
        session.put(f"{url}/api/v1/steps/1")
        assert heard == ["/api/v1/steps/1"]
        first.join()
        assert time.monotonic() - begun >= 1.0
        session.put(f"{url}/api/v1/steps/1/heartbeat")
        server.shutdown()
    assert heard == ["/api/v1/steps/1", *["/api/v1/steps/1/heartbeat"] * 2]


@pytest.mark.slow  # a step of seconds, on a server
def test_a_step_that_takes_longer_than_a_second_has_heartbeats(served_zen: Zen, tmp_path: Path) -> None:
    job = served_zen.submit("fan_out", tmp_path, width=1, seconds=4.0)
    code, output = job.pipeline(ZENML_LOGGING_VERBOSITY="DEBUG")
    assert code == 0, output
    assert re.search(r"200 PUT /api/v1/steps/[0-9a-f-]+/heartbeat", output), output


@contextmanager
def in_trouble(times: int) -> Iterator[str]:
    """A server that answers 500 so many times, and then 200; its address."""
    left = list(range(times))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"detail": ["RuntimeError", "the database is away"]}' if left else b"{}"
            self.send_response(500 if left else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            del left[:1]

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with serving_at(Handler) as address:
        yield f"http://{address}/"


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.mount("http://", FreshKeys(BUSY, 1))
        yield session


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_server_in_trouble_is_asked_again(session: requests.Session, method: str) -> None:
    with in_trouble(2) as url:
        answer = zenml_calls.patiently(lambda: session.request(method, url))
    assert answer.status_code == 200


def test_what_a_server_in_trouble_has_said_is_told(session: requests.Session) -> None:
    with in_trouble(99) as url, pytest.raises(requests.exceptions.HTTPError, match=r"500: .*the database is away"):
        zenml_calls.patiently(lambda: session.get(url), 0.1)


def test_what_may_have_been_made_is_not_made_twice(session: requests.Session) -> None:
    """A server that answers 500 may have made it before that."""
    with in_trouble(1) as url:
        assert zenml_calls.patiently(lambda: session.post(url)).status_code == 500

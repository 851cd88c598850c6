"""Tokens of ZenML that die while somebody still needs them: a sandbox's with its run, the flow's own after a while."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from zenml.client import Client
from zenml.enums import APITokenType
from zenml.login.credentials_store import CredentialsStore

from bridge.cleanup.lease import age
from bridge.cleanup.signs_of_life import last_sign
from bridge.doctor.finding import Grade
from bridge.doctor.patient import Patient
from bridge.doctor.zenml_side import server
from tests.integration.conftest import another_client
from tests.integration.lab import Lab, Ran, eventually, lab_beside
from tests.integration.under import Under

LEEWAY = 4
LEASE = 60
LOGIN_SECONDS = 60
LIFE = 100
"""Of the login that nothing renews; a run has to have begun in it."""
OWN = {"execution_mode": "per_step", "warm": False}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
"""A server of its own, which starts in ten seconds, and seconds or minutes until a token has died."""


@pytest.fixture(scope="module")
def short_lives(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server whose logins last a minute, and which takes a run's tokens for some seconds after the run has failed."""
    variables = {
        "ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY": str(LEEWAY),
        "ZENML_SERVER_MEMCACHE_DEFAULT_EXPIRY": "1",  # how long it remembers that a run goes on
        "ZENML_SERVER_JWT_TOKEN_EXPIRE_MINUTES": "1",
    }
    with lab_beside(lab, tmp_path_factory.mktemp("tokens"), variables) as beside:
        yield beside


@pytest.mark.parametrize("how", ["it runs on", "it comes to its end"])
@pytest.mark.parametrize(
    ("place", "settings"),
    [
        ("modal", {"execution_mode": "per_step", "warm": False}),
        ("modal", {"execution_mode": "per_step", "warm": True}),
        ("modal", {"execution_mode": "pipeline"}),
    ],
    ids=["own sandbox", "warm", "pipeline"],
)
def test_a_step_outlives_the_token_of_its_failed_run(
    short_lives: Lab, tmp_path: Path, place: str, settings: dict[str, Any], how: str
) -> None:
    """Nobody says that its flow is gone, and both sides say what to do."""
    import stoppable

    lab = short_lives
    runs_on = how == "it runs on"
    settings = {**settings, "orphan_timeout": LEASE if runs_on else 1800}
    under = Under(lab, tmp_path).start(stoppable.outlasting, place, settings, {"execution_mode": "stop_on_failure"})
    under.until_steps({"bad": "running", "long": "running"})
    (tmp_path / "fail-bad").touch()
    under.until_steps({"bad": "failed", "long": "running"})
    if not runs_on:
        time.sleep(LEEWAY + 3)  # the server tells nobody that it takes a token no longer
        (tmp_path / "go-long").touch()
    ran = under.join(90)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"bad": "failed", "long": "failed"}
    said = ran.run.steps["long"].get_hydrated_version().exception_info.traceback
    assert "was cut off: ZenML's server took the token of its sandbox no longer" in said
    assert "`ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY`" in said
    # As soon as a look at the lease says so, which is no answer to whether the flow is there.
    assert (ran.run.steps["long"].end_time - ran.run.steps["bad"].end_time).total_seconds() < LEASE
    assert under.all_dead()
    if settings["execution_mode"] == "per_step":
        assert ran.states == {"bad": "Failed", "long": "Failed"}
        assert ran.task_runs["long"].state.message == said
    else:
        assert ran.states == {"outlasting": "Failed"}
        assert "Also failed: long" in ran.task_runs["outlasting"].state.message
    logs = lab.logs(ran.task_runs["long" if settings["execution_mode"] == "per_step" else "outlasting"])
    assert any("ZENML_WORKLOAD_TOKEN_EXPIRATION_LEEWAY" in line for line in logs), logs
    assert len(ran.traces("long")) == 1


@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_one_that_could_be_tried_again_is_not(short_lives: Lab, tmp_path: Path, mode: str) -> None:
    """The token of another attempt would be as old. As any step that fails after its run it is stopped in the end."""
    import stoppable

    under = Under(short_lives, tmp_path)
    settings, options = {**OWN, "execution_mode": mode}, {"execution_mode": "stop_on_failure"}
    under.start(stoppable.outlasting, "modal", settings, options, retries=1)
    under.until_steps({"bad": "running", "long": "running"})
    (tmp_path / "fail-bad").touch()
    under.until_steps({"bad": "failed", "long": "running"})
    time.sleep(LEEWAY + 3)
    (tmp_path / "go-long").touch()
    ran = under.join(90)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"bad": "failed", "long": "stopped"}
    assert "was cut off: ZenML's server" in ran.run.steps["long"].get_hydrated_version().exception_info.traceback
    assert len(short_lives.sandboxes(ran)) == (2 if mode == "per_step" else 1)
    assert len(ran.traces("long")) == 1


@contextmanager
def logged_in(folder: Path, **login: str) -> Iterator[None]:
    """This process's only login at its ZenML server is that of the variables, or what a person puts there meanwhile."""
    variables = {"ZENML_CONFIG_PATH": str(folder / "login"), **login}
    CredentialsStore.reset_instance()
    try:
        with another_client(variables, without=("ZENML_STORE_USERNAME", "ZENML_STORE_PASSWORD")):
            yield
    finally:
        CredentialsStore.reset_instance()


def log_in(token: str) -> None:
    """What `zenml login` leaves behind, whose page in a browser nobody can click here: in another process."""
    code = (
        "import os, sys; from zenml.login.credentials_store import get_credentials_store; "
        "get_credentials_store().set_bare_token(os.environ['ZENML_STORE_URL'], sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, token], check=True)


def token_of(seconds: int) -> str:
    return str(Client().zen_store.get_api_token(APITokenType.GENERIC, expires_in=seconds))


def logged(flow_run_id: UUID, text: str) -> list[str]:
    """The lines with a text in the flow run's own logs, once there is one."""
    chosen = LogFilter(flow_run_id={"any_": [flow_run_id]})  # type: ignore[arg-type]
    with get_client(sync_client=True) as client:

        def read() -> list[str]:
            return [log.message for log in client.read_logs(chosen, limit=200) if text in log.message]

        found: list[str] = eventually(read, bool, 60)
    return found


def completed(ran: Ran) -> None:
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.states == {"first": "Completed", "second": "Completed"}
    assert {len(ran.traces(step)) for step in ran.states} == {1}


@pytest.mark.parametrize(("how", "place"), [("password", "modal"), ("API key", "modal"), ("password", "process")])
def test_the_login_of_a_flow_is_renewed(short_lives: Lab, tmp_path: Path, how: str, place: str) -> None:
    """A run that takes longer than a login lasts; without signs of life its sandbox would end in the middle."""
    import stoppable

    login = {"ZENML_STORE_USERNAME": "default", "ZENML_STORE_PASSWORD": ""}
    if how == "API key":
        account = Client().create_service_account(f"worker-{tmp_path.name}")
        login = {"ZENML_STORE_API_KEY": str(Client().create_api_key(account.id, "key", set_key=False).key)}
    with logged_in(tmp_path, **login):
        under = Under(short_lives, tmp_path).start(stoppable.telling_twice, place, {**OWN, "orphan_timeout": 20})
        under.until_steps({"first": "running"})
        (tmp_path / "go-second").touch()
        time.sleep(1.7 * LOGIN_SECONDS)
        sign = last_sign(Client().get_pipeline_run(under.run_id))
        assert (age(sign, datetime.now(timezone.utc)) or 99) < 20
        (tmp_path / "go-first").touch()
        completed(under.join(120))


def test_a_login_that_ends_with_nothing_to_renew_it(short_lives: Lab, tmp_path: Path) -> None:
    """Doctor and run say so beforehand, the run when it has happened; a new login in time lets it go on."""
    import stoppable

    stack, begun = short_lives.stack("modal"), time.monotonic()
    first, second = token_of(LIFE), token_of(3600)
    with logged_in(tmp_path):
        log_in(first)
        fixes = [finding.fix for finding in server(Patient()) if finding.grade is Grade.NOTE]
        assert ["`ZENML_STORE_API_KEY`" in fix for fix in fixes] == [True]
        under = Under(short_lives, tmp_path).start(
            stoppable.telling_twice, "modal", {**OWN, "orphan_timeout": 600}, stack=stack
        )
        under.until_steps({"first": "running"})
        flow_run_id = under.flow_run_id
        (said,) = logged(flow_run_id, "there is nothing to renew it with")
        assert "`ZENML_STORE_API_KEY`" in said
        assert time.monotonic() - begun < LIFE, "the login has ended too early for this test"
        time.sleep(LIFE + 15 - (time.monotonic() - begun))
        (tmp_path / "go-first").touch()
        (tmp_path / "go-second").touch()
        assert logged(flow_run_id, "`zenml login` on this machine lets the run go on")
        log_in(second)
        completed(under.join(120))

"""The host with its store behind a server, as on Modal."""

from __future__ import annotations

import re
from collections import Counter
from itertools import takewhile
from pathlib import Path
from uuid import uuid4

import pytest

from bridge import names
from tests.host.conftest import TIMEOUT, Zen


@pytest.mark.slow
def test_a_pipeline_whose_store_is_behind_a_server(served_zen: Zen, tmp_path: Path) -> None:
    job = served_zen.submit("ends", tmp_path, options={"execution_mode": "continue_on_failure"})
    code, output = job.pipeline()
    assert code == 1, output
    run, steps = job.statuses()
    assert run == "failed"
    assert steps["after"] == ["completed"]
    assert steps["killed_once"] == ["retried", "completed"]
    assert steps["raises_always"] == ["retried", "failed"]


@pytest.mark.slow  # a server; tests/host/test_pipeline.py shows quickly that the run is known
def test_a_step_asks_for_nothing_that_its_host_has(served_zen: Zen, tmp_path: Path) -> None:
    job = served_zen.submit("chain", tmp_path)
    code, output = job.pipeline(ZENML_LOGGING_VERBOSITY="DEBUG")
    assert code == 0, output
    asked = re.findall(r"\] (GET|POST|PUT) /api/v1/([a-z_]+)\S* started", output)
    assert asked.count(("GET", "pipeline_snapshots")) == 1  # the host's own
    assert asked.count(("POST", "runs")) == 1  # the first step's
    assert asked.count(("POST", "steps")) == 3
    # Nor is it looked at once more what each of ZenML's integrations requires.
    assert set(Counter(re.findall(r"Integration `?(\w+)`? (?:is|could not be) activated", output)).values()) == {1}


@pytest.mark.slow  # two runs on a server
def test_what_a_step_more_asks_zenml_s_server(served_zen: Zen, tmp_path: Path) -> None:
    asked: list[Counter[tuple[str, str]]] = []
    for length in (3, 6):
        folder = tmp_path / str(length)
        folder.mkdir()
        job = served_zen.submit("chain", folder, length=length)
        where = {names.ENV_MODAL_SANDBOX_ID: "sb-1", names.ENV_TASK_RUN_ID: str(uuid4())}
        code, output = job.pipeline(ZENML_LOGGING_VERBOSITY="DEBUG", **where)
        assert code == 0, output
        found = re.findall(r"\] (GET|POST|PUT) /api/v1/([a-z_-]+)(\S*) started", output)
        # A step that has ended within a second has no heartbeat; here one may take longer.
        found = [each for each in found if not each[2].endswith("/heartbeat")]
        # The host looks every few seconds whether the run is being stopped, however many steps there are.
        asked.append(Counter((how, what) for how, what, _ in found if (how, what) != ("GET", "runs")))
        runs = [(how, what) for how, what, _ in found if (how, what) == ("GET", "runs")]
        assert len(runs) < min(7, length + 3), runs
    assert asked[1] - asked[0] == Counter(
        {
            ("POST", "logs"): 3 * 2,
            ("POST", "steps"): 3,
            ("POST", "run-metadata"): 3,
            ("POST", "artifact_versions"): 3,
            ("PUT", "steps"): 3,
        }
    )


@pytest.mark.slow  # a server
def test_what_a_step_host_asks_before_its_first_step(served_zen: Zen, tmp_path: Path) -> None:
    job = served_zen.submit("chain", tmp_path)
    arguments = ("--snapshot-id", job.snapshot, "--run-id", job.run, "--socket", "host.sock")
    process = job.start("serve", *arguments, ZENML_LOGGING_VERBOSITY="DEBUG")
    assert process.stdout
    before = "".join(takewhile(lambda line: "The step host is ready." not in line, process.stdout))
    process.terminate()
    print(before, process.communicate(timeout=TIMEOUT)[0])
    assert Counter(re.findall(r"\] GET /api/v1/([a-z_]+)\S* started", before)) == {
        "info": 2,  # the second when it logs in: with a token, as in a sandbox, there is one
        "projects": 3,  # one that isn't logged in yet, one by ZenML's configuration, one by its client
        "stacks": 2,  # by the same two
        "components": 1,
        "pipeline_snapshots": 1,
        "runs": 1,
    }


@pytest.mark.slow
def test_cached_steps_of_a_run_behind_a_server(served_zen: Zen, tmp_path: Path) -> None:
    for expected in ("completed", "cached"):
        job = served_zen.submit("cached", tmp_path, value=5)
        code, output = job.pipeline()
        assert code == 0, output
        assert job.statuses() == ("completed", {"first": [expected], "second": [expected]})
        assert output.count("is answered from ZenML's cache") == (2 if expected == "cached" else 0)

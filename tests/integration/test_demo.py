"""`make demo`, as it is typed, in a copy of what it needs; then the two commands and links that it ends with."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings.models.server.api import ServerAPISettings

from tests import databases, ports, servers

WRITES = Path(__file__).with_name("writes")
MODELS = ("logistic regression", "random forest", "support vectors", "nearest neighbours")
TRAINED = {f"train_{kind.replace(' ', '_')}" for kind in MODELS}
UPSTREAMS = {"load": set(), "split": {"load"}, **{train: {"split"} for train in TRAINED}} | {
    "evaluate": {"split", *TRAINED},
    "pick": {"evaluate"},
}
ELSEWHERE = {
    "PREFECT_API_URL": "http://127.0.0.1:9/api",
    "ZENML_STORE_URL": "http://127.0.0.1:9",
    "ZENML_STORE_TYPE": "rest",
    "MODAL_TOKEN_ID": "ak-half-a-pair",
}
"""What its user may have configured for work of his own."""


def make(clone: Path, *arguments: str) -> list[str]:
    """The command that runs a target, whose set-up counts as done: it would be one more of what runs these tests."""
    done = [f"--old-file={name}" for name in (".venv/.demo", ".venv-zenml-server/.done")]
    return ["make", "-C", str(clone), "--no-print-directory", *done, f"BIN={Path(sys.executable).parent}", *arguments]


def server(clone: Path, target: str, port: int, health: str) -> tuple[servers.Server, str]:
    """What a target starts, on a free port instead of its own; and that one."""
    recipe = subprocess.run(make(clone, "--just-print", target), capture_output=True, text=True, check=True).stdout
    given = re.search(r"--port (\d+)", recipe)
    own = given[1] if given else str(ServerAPISettings.model_fields["port"].default)
    line = recipe.strip().replace(f"--port {own}", f"--port {port}")
    argv = ["/bin/sh", "-c", f"cd {shlex.quote(str(clone))} && exec env {line}"]
    environment = {"PREFECT_SERVER_API_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    return servers.Server(target, argv, environment, url, health, clone.parent / f"{target}.log"), own


def run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Its exit code and all that it says; what it has started ends with it, also where the time of the test is over."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def files(folder: Path) -> dict[str, int]:
    """What is in a folder, and when it was written: but for what Python keeps of modules, and the demo's own folder."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", ".demo"} & set(path.relative_to(folder).parts)
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "migrated", [pytest.param(True, id="migrated"), pytest.param(False, id="from nothing", marks=pytest.mark.slow)]
)
def test_make_demo(tmp_path: Path, migrated: bool) -> None:
    """Quickly where both databases are there: Prefect and ZenML take long to make theirs (`tests/databases.py`)."""
    clone, home, temporary, log = (tmp_path / name for name in ("clone", "home", "tmp", "writes.jsonl"))
    shutil.copytree(servers.ROOT / "examples", clone / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(servers.ROOT / "Makefile", clone)
    (clone / ".venv-zenml-server").symlink_to(servers.ROOT / ".venv-zenml-server")
    home.mkdir()
    temporary.mkdir()
    if migrated:
        databases.put("prefect", clone / ".demo" / databases.PLACES["prefect"])
        databases.put("zenml", clone / ".demo" / "zenml" / databases.ZENML_STORE)
    before = files(clone)
    environment = {**servers.clean_environment(), **ELSEWHERE, "HOME": str(home), "TMPDIR": str(temporary)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # where there is uv, which ZenML asks
    environment |= {"PYTHONPATH": str(WRITES), "WRITES_LOG": str(log)}
    begin = time.monotonic()
    code, output = run(make(clone, "demo"), environment)
    assert code == 0, output[-3000:]
    assert migrated or time.monotonic() - begin < 90, "set up as it was, and with nothing else to do"

    # The table, and the best of it.
    rows = re.findall(r"^  (\w+ \w+) +([01]\.\d{3}) +([01]\.\d{3}) +(\d+)$", output, re.MULTILINE)
    assert {row[0] for row in rows} == set(MODELS)
    assert min(float(row[1]) for row in rows) > 0.9
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    (best,) = re.findall(r"^The best model is: (.+)$", output.partition("\nRun ")[2], re.MULTILINE)
    assert best == rows[0][0]

    # Above it plain lines, since this is no terminal: each with its time and its step.
    assert re.search(r"^\d\d:\d\d:\d\d \| load \| 1797 images of 10 digits$", output, re.MULTILINE), output[-5000:]

    # It has written to its own folder only.
    assert list(home.iterdir()) == list(temporary.iterdir()) == []
    assert files(clone) == before
    written = [json.loads(line) for line in log.read_text().splitlines()]
    own = str((clone / ".demo").resolve())
    # The last one where `make test-all` measures these tests.
    kept = re.compile(r"/__pycache__(/|$)|^/dev/(null|tty)$|^/proc/self/|/\.coverage\.[^/]+$")
    assert [line for line in written if not line["path"].startswith(own) and not kept.search(line["path"])] == []

    # What it says opens this very run.
    links = dict(re.findall(r"(http://127\.0\.0\.1:\d+/\S+/)(\S+)", output.partition("Look at this very run")[2]))
    (prefect_link, flow_run_id), (zenml_link, run_id) = links.items()
    prefect, prefect_port = server(clone, "prefect-ui", ports.free_port(), "/api/health")
    zenml, zenml_port = server(clone, "zenml-ui", ports.free_port(), "/health")
    assert prefect_link == f"http://127.0.0.1:{prefect_port}/runs/flow-run/"
    assert zenml_link == f"http://127.0.0.1:{zenml_port}/projects/default/runs/"
    try:
        prefect.launch()
        zenml.launch()
        check_prefect(prefect.wait().url, flow_run_id)
        sandboxes = check_zenml(zenml.wait(), run_id, flow_run_id)
    finally:
        prefect.stop()
        zenml.stop()

    # Each step was a process of its own, which wrote its outputs, in the sandbox that ZenML names.
    outputs = re.compile(rf"^{re.escape(own)}/zenml/local_stores/[^/]+/({'|'.join(UPSTREAMS)})/")
    wrote: dict[str, set[tuple[str, int]]] = {step: set() for step in UPSTREAMS}
    for line in written:
        if found := outputs.match(line["path"]):
            wrote[found[1]].add((line["sandbox"], line["pid"]))
    assert {step: {sandbox for sandbox, _ in processes} for step, processes in wrote.items()} == sandboxes
    assert len(set.union(*wrote.values())) == len(UPSTREAMS)


def check_prefect(url: str, flow_run_id: str) -> None:
    """The flow run, and the pipeline's graph of task runs."""
    with httpx.Client(base_url=f"{url}/api", trust_env=False, timeout=60) as client:
        flow_run = client.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()
        assert flow_run["state"]["name"] == "Completed"
        assert client.get(f"/flows/{flow_run['flow_id']}").raise_for_status().json()["name"] == "digits"
        ours = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        task_runs: list[Any] = client.post("/task_runs/filter", json=ours).raise_for_status().json()
        page = client.get(f"{url}/runs/flow-run/{flow_run_id}", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert {run["name"]: run["state"]["name"] for run in task_runs} == dict.fromkeys(UPSTREAMS, "Completed")
    names = {run["id"]: run["name"] for run in task_runs}
    upstreams = {
        run["name"]: {names[given["id"]] for inputs in run["task_inputs"].values() for given in inputs}
        for run in task_runs
    }
    assert upstreams == UPSTREAMS


def check_zenml(zenml: servers.Server, run_id: str, flow_run_id: str) -> dict[str, set[str]]:
    """The run, and its steps; return the sandbox of each."""
    with servers.zenml_api(zenml) as client:
        run = client.get(f"/runs/{run_id}").raise_for_status().json()
        asked = {"pipeline_run_id": run_id, "hydrate": True, "size": 50}
        steps: list[Any] = client.get("/steps", params=asked).raise_for_status().json()["items"]
        page = client.get(f"{zenml.url}/projects/default/runs/{run_id}", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert (run["body"]["status"], run["metadata"]["orchestrator_run_id"]) == ("completed", flow_run_id)
    assert {step["name"]: step["body"]["status"] for step in steps} == dict.fromkeys(UPSTREAMS, "completed")
    return {step["name"]: {step["metadata"]["run_metadata"]["modal_sandbox_id"]} for step in steps}

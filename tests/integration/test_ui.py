"""What a person sees in Prefect's UI: looked at in a headless browser, checked through the API that feeds it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import modal
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter

from bridge.watching.board import COLUMNS, SHARED
from bridge.watching.followed import FollowedSteps
from tests import servers
from tests.integration import browser
from tests.integration.lab import Lab, Ran, eventually
from tests.integration.under import Under, cancel
from tests.loopback.control import PRICE

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
PER_STEP = {"execution_mode": "per_step"}
TELLS_COSTS = hasattr(modal.App, "sandboxes")


def artifacts(flow_run_id: Any) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id={"any_": [flow_run_id]})  # type: ignore[arg-type]
        found = client.read_artifacts(artifact_filter=chosen)
    kinds = {artifact.type: artifact for artifact in found}
    assert len(kinds) == len(found)
    return kinds


def table(flow_run_id: Any) -> dict[str, dict[str, Any]]:
    found = artifacts(flow_run_id).get("table")
    return {row["step"]: row for row in json.loads(found.data)} if found else {}


@pytest.fixture(scope="module")
def diamond(lab: Lab) -> Ran:
    import shapes

    ran = lab.run(shapes.diamond, lab.stack("modal"), settings=PER_STEP)
    assert ran.status == "completed"
    return ran


def test_the_graph_has_the_pipelines_edges(lab: Lab, diamond: Ran) -> None:
    answer = httpx.get(f"{lab.prefect.url}/api/flow_runs/{diamond.flow_run.id}/graph-v2").json()
    nodes = {node["id"]: node for _, node in answer["nodes"]}
    edges = {(nodes[parent["id"]]["label"], node["label"]) for node in nodes.values() for parent in node["parents"]}
    assert edges == {("one", "left"), ("one", "right"), ("left", "bottom"), ("right", "bottom")}


def test_the_table_the_progress_and_the_links(lab: Lab, diamond: Ran) -> None:
    found = artifacts(diamond.flow_run.id)
    assert set(found) == {"table", "progress", "markdown"}
    rows = table(diamond.flow_run.id)
    boxes = lab.sandboxes(diamond)
    cost = f"{len(boxes) * PRICE:.4f}"
    assert (rows.pop(SHARED)["cost ($)"] == cost) if TELLS_COSTS else SHARED not in rows
    assert {step: (row["state"], row["attempt"]) for step, row in rows.items()} == dict.fromkeys(
        ("one", "left", "right", "bottom"), ("Completed", 1)
    )
    assert {row["sandbox"].strip("[").partition("]")[0] for row in rows.values()} <= {box.id for box in boxes}
    assert float(found["progress"].data) == 100.0
    assert str(diamond.run.id) in found["markdown"].data
    assert re.search(r"\[zenml-diamond\]\(https://modal\.com/id/ap-\w+\)", found["markdown"].data)
    assert (f"Cost so far: ${cost}" in found["markdown"].data) is TELLS_COSTS


def test_who_waits_elsewhere_reads_the_table_back(lab: Lab, diamond: Ran) -> None:
    steps = FollowedSteps(diamond.flow_run.id, "diamond")
    assert (steps.table(), steps.news(), steps.cost) == ([], [], None)
    with get_client(sync_client=True) as client:
        steps.read(client)
    rows = {str(row["step"]): row for row in steps.table()}
    assert rows == table(diamond.flow_run.id)
    assert {tuple(row) for row in rows.values()} == {COLUMNS}
    assert steps.news() == [f"Step {step}: Completed" for step in ("one", "left", "right", "bottom")]
    assert steps.news() == []
    assert steps.cost == (Decimal(rows[SHARED]["cost ($)"]) if TELLS_COSTS else None)
    other = FollowedSteps(diamond.flow_run.id, "another")
    with get_client(sync_client=True) as client:
        other.read(client)
    assert other.table() == []


@pytest.mark.slow  # what it has at the end, the test above says
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_the_table_follows_the_run(lab: Lab, tmp_path: Path, mode: str) -> None:
    import stoppable

    under = Under(lab, tmp_path).start(stoppable.held, "process", {"execution_mode": mode})
    under.until_steps({"hangs": "running", "again": "retrying"})
    flow_run_id = under.flow_run_id

    def caught_up(rows: dict[str, dict[str, Any]]) -> bool:
        return bool(rows) and rows["hangs"]["state"] == "running" and "retry" in rows["again"]["state"]

    running = eventually(lambda: table(flow_run_id), caught_up)
    assert running["hangs"]["sandbox"]
    assert running["again"]["state"] in ("waiting for its retry", "retrying")
    assert running["later"]["state"] == "waiting for upstream"
    cancel(flow_run_id)
    under.join()
    rows = table(flow_run_id)
    assert rows["hangs"]["state"].lower() in ("cancelled", "stopped")
    assert rows["later"]["state"] == "NotRun"
    assert "hangs" in rows["later"]["why"]


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs /usr/bin/chromium: apt-get install chromium")
@pytest.mark.slow  # the API says the same, without its picture
def test_the_task_runs_tab_in_a_browser(lab: Lab, diamond: Ran, tmp_path: Path) -> None:
    page = f"{lab.prefect.url}/v2/runs/flow-run/{diamond.flow_run.id}?tab=TaskRuns"
    text = browse(page, tmp_path, "--dump-dom")
    shown = re.sub(r"<[^>]+>", " ", text)
    for step in ("one", "left", "right", "bottom"):
        assert re.search(rf"\b{step}\b", shown), shown[:3000]
    fresh = tmp_path / "seen.png"
    browse(page, tmp_path, f"--screenshot={fresh}", "--window-size=1400,1100")
    assert fresh.stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.skipif(browser.MISSING, reason="needs /usr/bin/chromium: apt-get install chromium")
def test_from_zenmls_dashboard_a_click_leads_to_the_flow_run(
    lab: Lab, zenml_api: servers.Server, diamond: Ran, tmp_path: Path
) -> None:
    flow_run = f"/runs/flow-run/{diamond.flow_run.id}"
    with browser.Browser(tmp_path / "browser", (1400, 1300)) as chromium:
        tab = chromium.tab()
        browser.log_in_to_zenml(tab, zenml_api.url)
        tab.open(f"{zenml_api.url}/projects/default/runs/{diamond.run.id}")
        link = f"document.querySelector('a[href*=\"{flow_run}\"]')"
        tab.until(f"!!{link}")
        tab.evaluate(f"{link}.click()")
        opened = chromium.tab(flow_run)
        opened.until(f"document.body.innerText.includes({diamond.flow_run.name!r})")


def browse(page: str, folder: Path, *arguments: str) -> str:
    """Open a page in a headless browser of its own, give it time to render, and return what it prints."""
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"),
            *(f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=15000", *arguments, page),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout

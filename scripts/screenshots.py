"""The pictures in `docs/img`, from a real run: `make screenshots`.

Runs the quickstart as `make demo` does, serves Prefect's UI and ZenML's dashboard of it on free ports of this machine,
and takes the pictures in a headless Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from tests import servers
from tests.integration import browser
from tests.integration.lab import eventually

ROOT = servers.ROOT
DEMO = ROOT / ".demo"
PICTURES = ROOT / "docs" / "img"
PAINT_SECONDS = 8.0
"""How long a page draws after its text is there: graphs are drawn on a canvas, which says nothing when it is done."""


def main() -> int:
    """Make the pictures again; return the exit code."""
    if browser.MISSING:
        print("There is no chromium here: apt-get install chromium.", file=sys.stderr)
        return 1
    subprocess.run([sys.executable, ROOT / "examples" / "quickstart" / "demo.py"], cwd=ROOT, check=True)
    PICTURES.mkdir(exist_ok=True)
    prefect = servers.prefect_server(DEMO)
    zenml = servers.zenml_server(DEMO)
    zenml = replace(zenml, environment={**zenml.environment, "ZENML_CONFIG_PATH": str(DEMO / "zenml")})
    with running(prefect), running(zenml), tempfile.TemporaryDirectory() as folder:
        flow_run, table, steps = newest(prefect.url)
        run = next(tag.partition(":")[2] for tag in flow_run["tags"] if tag.startswith("zenml_run_id:"))
        with browser.Browser(Path(folder) / "prefect", (1400, 1100)) as chromium:
            tab = chromium.tab()
            page = f"{prefect.url}/v2/runs/flow-run/{flow_run['id']}?tab=TaskRuns"
            take(tab, page, steps, PICTURES / "prefect-flow-run.png")
        with browser.Browser(Path(folder) / "table", (1800, 900)) as chromium:
            tab = chromium.tab()
            take(tab, f"{prefect.url}/v2/artifacts/artifact/{table}", steps, PICTURES / "prefect-steps.png")
        with browser.Browser(Path(folder) / "zenml", (1400, 1100)) as chromium:
            tab = chromium.tab()
            browser.log_in_to_zenml(tab, zenml.url)
            take(tab, f"{zenml.url}/projects/default/runs/{run}", steps, PICTURES / "zenml-run.png")
    return 0


@contextmanager
def running(server: servers.Server) -> Iterator[None]:
    """A server, while the block runs."""
    server.start()
    try:
        yield
    finally:
        server.stop()


def newest(url: str) -> tuple[dict[str, Any], str, set[str]]:
    """The newest flow run, the id of its table of steps, and the names of its steps."""
    (flow_run,) = ask(url, "flow_runs", {"sort": "START_TIME_DESC", "limit": 1})
    chosen = {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}, "type": {"any_": ["table"]}}}
    # Newest first: each state of the table while the run went on is an artifact of its own.
    found = eventually(lambda: ask(url, "artifacts", {**chosen, "sort": "UPDATED_DESC", "limit": 1}), bool)
    rows = json.loads(found[0]["data"])
    return flow_run, found[0]["id"], {row["step"] for row in rows}


def ask(url: str, what: str, question: dict[str, Any]) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = (
        httpx.post(f"{url}/api/{what}/filter", json=question, trust_env=False).raise_for_status().json()
    )
    return answer


def take(tab: browser.Tab, page: str, words: set[str], picture: Path) -> None:
    """Open a page, wait for these words and for its drawings, and keep it as a picture."""
    tab.open(page)
    tab.until(f"{json.dumps(sorted(words))}.every(word => document.body.innerText.includes(word))")
    time.sleep(PAINT_SECONDS)
    tab.screenshot(picture)
    print(f"{picture.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())

"""The pictures in `docs/img`, from a real run: `make screenshots`.

Runs the quickstart as `make demo` does, serves Prefect's UI of it on a free port of this machine, and takes the picture
in a headless Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "img"
PICTURE = "prefect-flow-run.png"
PAGE = "v2/runs/flow-run/{id}?tab=TaskRuns"
START_SECONDS = 60.0
RENDER_MILLISECONDS = 15_000


def main() -> int:
    """Make the pictures again; return the exit code."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("There is no chromium here: apt-get install chromium.", file=sys.stderr)
        return 1
    subprocess.run([sys.executable, ROOT / "examples" / "quickstart" / "demo.py"], cwd=ROOT, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [Path(sys.executable).parent / "prefect", "server", "start", "--port", str(port)],
        env={
            **os.environ,
            "PREFECT_HOME": str(ROOT / ".demo" / "prefect"),
            "PREFECT_SERVER_UI_API_URL": f"{url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        newest = _newest_flow_run(url)
        PICTURES.mkdir(exist_ok=True)
        _take(chromium, f"{url}/{PAGE.format(id=newest)}", PICTURES / PICTURE)
    finally:
        server.terminate()
        server.wait()
    return 0


def _newest_flow_run(url: str) -> str:
    """The id of the newest flow run, once the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            answer = httpx.post(f"{url}/api/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1})
            return str(answer.raise_for_status().json()[0]["id"])
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _take(chromium: str, page: str, picture: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"),
                *(f"--user-data-dir={profile}", f"--virtual-time-budget={RENDER_MILLISECONDS}"),
                *(f"--screenshot={picture}", "--window-size=1400,1100", page),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )


if __name__ == "__main__":
    sys.exit(main())

"""Somebody's own machine: logged in to the servers, follows the how-to, looks at both sides."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests import servers
from tests.deployments.containers import Network
from tests.integration.lab import IMAGE, STACK_CODE, eventually
from tests.loopback import LoopbackModal

HOW_TO = servers.ROOT / "docs" / "how-to" / "deployments.md"
PASSWORDS = {
    "POSTGRES_PASSWORD": "made4postgres",
    "MYSQL_PASSWORD": "made4mysql",
    "ZENML_ADMIN_PASSWORD": "made4zenml",
    "ZENML_JWT_SECRET_KEY": "made4tokens-made4tokens-made4tokens",
    "PREFECT_AUTH_STRING": "team:made4prefect",
}
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PIPELINE = """
import time
from pathlib import Path
from zenml import pipeline, step
from zenml.config import DockerSettings

FOLDER = Path({folder!r})


@step
def ask() -> int:
    return 6


@step(enable_cache=False)
def answer(number: int) -> int:
    (FOLDER / "begun").touch()
    while not (FOLDER / "released").exists():
        time.sleep(0.05)
    return number * 7


docker = DockerSettings(parent_image={image!r}, skip_build=True)


@pipeline(settings={{"docker": docker}})
def mine() -> None:
    answer(ask())
"""


class Office:
    """Commands are run as they stand in the how-to; what they print is remembered for its ``<placeholders>``."""

    def __init__(self, folder: Path, network: Network, modal: LoopbackModal) -> None:
        self.folder = folder
        self.modal = modal
        self.prefect_url = f"http://127.0.0.1:{network.port('prefect-server:4200')}/api"
        self.zenml_url = f"http://127.0.0.1:{network.port('zenml-server:8080')}"
        self.known: dict[str, str] = {}
        self._token = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            **servers.clean_environment(),
            **servers.zenml_client_environment(self.folder / "zenml", None),
            "ZENML_STORE_TYPE": "rest",
            "ZENML_STORE_URL": self.zenml_url,
            "ZENML_STORE_USERNAME": "admin",
            "ZENML_STORE_PASSWORD": PASSWORDS["ZENML_ADMIN_PASSWORD"],
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_API_AUTH_STRING": PASSWORDS["PREFECT_AUTH_STRING"],
            "PREFECT_HOME": str(self.folder / "prefect"),
            "HOME": str(self.folder),
            "PATH": f"{servers.ROOT / '.venv' / 'bin'}:/usr/bin:/bin",
            "PYTHONPATH": f"{STACK_CODE}:{self.folder}",
            "COLUMNS": "300",
            "DO_NOT_TRACK": "1",
            **self.modal.env,
        }

    def prepare(self) -> Office:
        """Make a project, and a stack for it."""
        self.folder.mkdir()
        (self.folder / "artifacts").mkdir()
        (self.folder / "my_pipeline.py").write_text(PIPELINE.format(folder=str(self.folder), image=IMAGE))
        script = Path(__file__).with_name("prepare.py")
        self.run(["zenml", "init"])
        self.run([sys.executable, str(script), str(self.folder / "artifacts")])
        return self

    def follow(self, part: str, timeout: float = 120) -> dict[str, str]:
        """Run the commands of a part of the how-to; return everything that was printed so far and has a name."""
        text = HOW_TO.read_text().split(f"<!-- {part}: begin -->")[1].split(f"<!-- {part}: end -->")[0]
        commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        assert commands
        for command in commands:
            for name, value in self.known.items():
                command = command.replace(f"<{name}>", value)
            assert "<" not in command, f"{command}: not known"
            # The project's folder, but for what the how-to says is run in the clone.
            self._remember(self.run(shlex.split(command), servers.ROOT if "deploy --all" in command else None, timeout))
        return self.known

    def run(self, argv: list[str], folder: Path | None = None, timeout: float = 120) -> str:
        """Run a command, in the project's folder unless told otherwise; return what it printed. It must succeed."""
        ran = subprocess.run(
            argv,
            env=self.environment,
            cwd=folder or self.folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert ran.returncode == 0, f"{shlex.join(argv)}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout + ran.stderr

    def _remember(self, said: str) -> None:
        for name, pattern in {"api key": r"ZENKEY_[\w+/=-]+", "flow run id": rf"UUID: ({UUID})"}.items():
            if found := re.search(pattern, said):
                self.known[name] = found[found.lastindex or 0]
        if snapshots := re.findall(rf"({UUID})[^\n]*nightly", said):
            self.known["snapshot id"] = snapshots[0]

    def living(self) -> list[str]:
        """The sandboxes that run now."""
        return [box.id for box in self.modal.sandboxes() if box.status in ("pending", "running")]

    def hold(self) -> None:
        """The next run's second step waits from now on."""
        for name in ("begun", "released"):
            (self.folder / name).unlink(missing_ok=True)

    def until_begun(self) -> None:
        assert eventually(lambda: (self.folder / "begun").exists(), bool, 60)

    def release(self) -> None:
        (self.folder / "released").touch()

    def prefect(self, path: str, method: str = "GET", **body: object) -> Any:
        """Ask Prefect's API."""
        user, password = PASSWORDS["PREFECT_AUTH_STRING"].split(":")
        answer = httpx.request(method, self.prefect_url + path, auth=(user, password), json=body or None, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def zenml(self, path: str, method: str = "GET", **query: str) -> Any:
        """Ask ZenML's REST API as its dashboard does."""
        if not self._token:
            login = {"username": "admin", "password": PASSWORDS["ZENML_ADMIN_PASSWORD"]}
            self._token = httpx.post(f"{self.zenml_url}/api/v1/login", data=login, timeout=30).json()["access_token"]
        header = {"Authorization": f"Bearer {self._token}"}
        url = f"{self.zenml_url}/api/v1{path}"
        answer = httpx.request(method, url, headers=header, params=query, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def zenml_run(self, flow_run_id: str) -> dict[str, Any]:
        """The ZenML run of a flow run."""
        found = self.zenml("/runs", orchestrator_run_id=flow_run_id)["items"]
        assert len(found) == 1
        run: dict[str, Any] = found[0]
        return run

    def until_ended(self, flow_run_id: str, seconds: float = 60) -> tuple[str, str]:
        """Wait until both sides say that the run has ended, and return what they say: ZenML first."""

        def both() -> tuple[str, str]:
            flow_run = self.prefect(f"/flow_runs/{flow_run_id}")
            return self.zenml_run(flow_run_id)["body"]["status"], flow_run["state"]["name"]

        ends = {("completed", "Completed"), ("failed", "Failed"), ("stopped", "Cancelled")}
        found: tuple[str, str] = eventually(both, lambda states: states in ends, seconds)
        return found

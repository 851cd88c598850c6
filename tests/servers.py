"""Real servers for the tests, each a process of its own on loopback, ended by its pid."""

from __future__ import annotations

import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests import databases
from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 240.0


def clean_environment() -> dict[str, str]:
    """This process's environment without anything of ZenML, Prefect or Modal."""
    prefixes = ("ZENML", "PREFECT", "MODAL")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}


@dataclass
class Server:
    """A server process. ``start`` and ``stop`` may be called again and again; the port stays."""

    name: str
    argv: list[str]
    environment: Mapping[str, str]
    url: str
    health: str
    log: Path
    well: int = 200
    """The status with which it answers ``health``."""
    verify: ssl.SSLContext | bool = True
    """How its certificate is checked, where it has one."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> Server:
        """Start it and wait until it answers."""
        self.launch()
        return self.wait()

    def launch(self) -> Server:
        """Start it. Does nothing if it runs."""
        if self.process is not None:
            return self
        log = self.log.open("ab")
        self.process = subprocess.Popen(
            self.argv,
            env={**clean_environment(), **self.environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        return self

    def wait(self) -> Server:
        """Wait until it answers."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(timeout=2, trust_env=False, verify=self.verify) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended at once:\n{self.log.read_text()[-3000:]}")
                try:
                    if client.get(self.url + self.health).status_code == self.well:
                        return self
                except httpx.TransportError:
                    pass
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"{self.name} didn't answer within {START_SECONDS} s:\n{self.log.read_text()[-3000:]}")

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End it. Does nothing if it isn't running."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(sig)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def prefect_server(folder: Path, port: int | None = None, *, record_at_once: bool = False, new: bool = False) -> Server:
    """A Prefect server on SQLite whose data is in ``folder``.

    With ``record_at_once`` task runs can be read soon after they changed; else a batch that isn't full waits for 5 s.
    Its database is a kept one (:mod:`tests.databases`), unless it is to be ``new``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not new:
        databases.put("prefect", folder / databases.PLACES["prefect"])
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    }
    if record_at_once:
        # Whole seconds: of less Prefect makes 0, and its server spins (prefect/server/services/task_run_recorder.py).
        environment["PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL"] = "1"
    argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return Server("prefect server", argv, environment, url, "/api/health", folder / "prefect.log")


def zenml_server(folder: Path, *, new: bool = False) -> Server:
    """A ZenML server on SQLite whose data is in ``folder``. User ``default``, no password.

    Its database is a kept one (:mod:`tests.databases`), unless it is to be ``new``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not new:
        databases.put("zenml", folder / databases.PLACES["zenml"])
    port = free_port()
    environment = {
        "ZENML_CONFIG_PATH": str(folder / "zenml-server"),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_SERVER_AUTO_ACTIVATE": "1",
        "ZENML_SERVER_JWT_SECRET_KEY": secrets.token_hex(32),  # else a restart makes all tokens worthless
        "ZENML_SERVER_DEPLOYMENT_TYPE": "other",
        "ZENML_LOGGING_COLORS_DISABLED": "true",
    }
    python = ROOT / ".venv-zenml-server" / "bin" / "python"
    app = "zenml.zen_server.zen_server_api:app"
    argv = [
        str(python),
        "-m",
        "uvicorn",
        app,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    return Server("zenml server", argv, environment, f"http://127.0.0.1:{port}", "/health", folder / "zenml.log")


def zenml_client_environment(folder: Path, server: Server | None) -> dict[str, str]:
    """What a ZenML client process needs: its own configuration, logged in to ``server`` if there is one."""
    environment = {
        "ZENML_CONFIG_PATH": str(folder),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_LOGGING_COLORS_DISABLED": "true",
        "ZENML_ENABLE_RICH_TRACEBACK": "false",
    }
    if server is not None:
        environment |= {
            "ZENML_STORE_TYPE": "rest",
            "ZENML_STORE_URL": server.url,
            "ZENML_STORE_USERNAME": "default",
            "ZENML_STORE_PASSWORD": "",
        }
    return environment


@contextmanager
def zenml_api(server: Server, user: str = "default", password: str = "") -> Iterator[httpx.Client]:
    """A client of a ZenML server's REST API, logged in."""
    with httpx.Client(base_url=f"{server.url}/api/v1", trust_env=False, timeout=120) as client:
        answer = client.post("/login", data={"username": user, "password": password}).raise_for_status()
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client

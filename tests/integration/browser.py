"""A headless Chromium of its own, driven through its DevTools protocol: enough to log in, look and click."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.integration.lab import eventually

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ANSWER_SECONDS = 60.0
MISSING = not Path(CHROMIUM).exists()


class Tab:
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Make a call of the protocol and return its result."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=ANSWER_SECONDS))
            if answer.get("id") == number:  # everything else is an event
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, awaited if it is a promise; None where the page was left meanwhile."""
        try:
            return self._evaluate(script)
        except TimeoutError:
            return None

    def _evaluate(self, script: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go to a page. Its scripts may still be at work afterwards."""
        self.call("Page.navigate", url=url)
        assert eventually(lambda: self.evaluate("document.readyState"), lambda state: state == "complete", 60)

    def until(self, script: str, seconds: float = 60) -> Any:
        """Wait until an expression is truthy, and return it."""
        found = eventually(lambda: self.evaluate(script), bool, seconds)
        assert found, f"{script}\n{self.evaluate('document.body.innerText')[:3000]}"
        return found

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def log_in_to_zenml(tab: Tab, url: str) -> None:
    """Log in to ZenML's dashboard as its user ``default``, who has no password."""
    tab.open(url)
    login = "fetch('/api/v1/login', {method: 'POST', body: new URLSearchParams({username: 'default', password: ''})})"
    assert tab.evaluate(f"{login}.then(answer => answer.status)") == 200
    # Else the dashboard first asks who this is, and for a survey. Only the user itself may say so.
    known = {"full_name": "Default", "email_opted_in": False, "user_metadata": {"finished_onboarding_survey": True}}
    request = {"method": "PUT", "headers": {"Content-Type": "application/json"}, "body": json.dumps(known)}
    told = f"fetch('/api/v1/current-user', {json.dumps(request)}).then(answer => answer.status)"
    assert tab.evaluate(told) == 200
    tab.evaluate("localStorage.setItem('isAuthenticated', 'true')")  # the dashboard's own mark, beside the cookie


class Browser:
    """Use as ``with``."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1400, 1100)) -> None:
        self._folder = folder
        self._size = size
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: list[ClientConnection] = []

    def __enter__(self) -> Browser:
        self._process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"),
                *(
                    f"--user-data-dir={self._folder}",
                    "--remote-debugging-port=0",
                    "--no-first-run",
                    "--hide-scrollbars",
                ),
                *(f"--window-size={self._size[0]},{self._size[1]}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = self._folder / "DevToolsActivePort"
        assert eventually(lambda: port_file.exists() and port_file.read_text().strip(), bool, 60)
        self._url = f"http://127.0.0.1:{port_file.read_text().splitlines()[0]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def pages(self) -> list[dict[str, Any]]:
        """The tabs that are open, with ``url`` and ``title``."""
        found = httpx.get(f"{self._url}/json/list", timeout=30, trust_env=False).json()
        return [page for page in found if page["type"] == "page"]

    def tab(self, url_part: str = "") -> Tab:
        """The open tab whose address has this part."""
        found = eventually(lambda: [page for page in self.pages() if url_part in page["url"]], bool, 30)
        assert found, [page["url"] for page in self.pages()]
        address = found[0]["webSocketDebuggerUrl"]
        connection = connect(address, max_size=None, open_timeout=60, proxy=None)
        self._connections.append(connection)
        return Tab(connection)

"""What `deployments/` starts in containers, started as processes: the same commands, variables and health checks.

What a container's own network gives is translated: names of services and ports become ports on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import ports, servers

HEALTHY_SECONDS = 90.0


class Network:
    """Ports on loopback for the services' names and ports."""

    def __init__(self, *services: str) -> None:
        self._ports = {service: str(ports.free_port()) for service in services}

    def port(self, service: str) -> str:
        """The port on loopback of ``name:port``."""
        return self._ports[service]

    def here(self, text: str) -> str:
        """A variable's value or a command's argument, as it must be said here."""
        for service, port in self._ports.items():
            name, there = service.split(":")
            if text == name:
                return "127.0.0.1"
            if text == there:
                return port
            text = re.sub(rf"\b({name}|localhost|127\.0\.0\.1):{there}\b", f"127.0.0.1:{port}", text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def argv(self, words: Sequence[str]) -> list[str]:
        return [self.here(word) for word in words]

    def environment(self, variables: Mapping[str, object]) -> dict[str, str]:
        return {name: self.here(str(value)) for name, value in variables.items()}


@dataclass
class Container:
    """A process that stands for a container: a clean environment, a folder of its own, its image's programs first."""

    name: str
    argv: list[str]
    environment: dict[str, str]
    programs: Path
    folder: Path
    health: list[str] | None = None
    user: str | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def variables(self) -> dict[str, str]:
        home = {"HOME": str(self.folder), "DO_NOT_TRACK": "1"}
        path = f"{self.programs}:{os.environ['PATH']}"
        return {**servers.clean_environment(), **home, **self.environment, "PATH": path}

    def start(self) -> Container:
        """Start it; don't wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [self._program(self.argv[0]), *self.argv[1:]]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                env=self.variables,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self.user,
            )
        return self

    def run(self) -> None:
        """Run it to its end, which must be a success."""
        self.start()
        assert self._process is not None
        assert self._process.wait(HEALTHY_SECONDS) == 0, self.said()

    def until_healthy(self) -> Container:
        """Wait until its health check succeeds."""
        assert self._process is not None
        assert self.health is not None
        deadline = time.monotonic() + HEALTHY_SECONDS
        while True:
            check = subprocess.run(
                [self._program(self.health[0]), *self.health[1:]],
                env=self.variables,
                check=False,
                capture_output=True,
                text=True,
            )
            if check.returncode == 0:
                return self
            assert self._process.poll() is None, f"{self.name} ended with {self._process.returncode}: {self.said()}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy: {check.stderr}\n{self.said()}"
            time.sleep(0.2)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it as Docker does, with SIGTERM and then SIGKILL. Does nothing if it isn't running."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)

    def _program(self, name: str) -> str:
        found = shutil.which(name, path=self.variables["PATH"])
        assert found, f"{name} isn't in the image of {self.name}"
        return found

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-3000:]


def command(text: str) -> list[str]:
    """The words of a CMD or HEALTHCHECK in exec form."""
    words: list[str] = json.loads(text[text.index("[") :])
    return words

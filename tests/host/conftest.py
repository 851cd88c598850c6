"""A real ZenML store, a client process beside it, and the host as a real program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bridge import names
from tests import databases
from tests.servers import zenml_client_environment, zenml_server

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TIMEOUT = 120


def base_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZENML")}
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE / "stack")]),
        "PYTHONUNBUFFERED": "1",
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_CONFIG_PATH": str(home / "zenml"),
        "ZENML_ENABLE_RICH_TRACEBACK": "false",
        "ZENML_LOGGING_COLORS_DISABLED": "true",
        "HOST_TEST_PROJECT": str(HERE / "project"),
    }


@dataclass
class Zen:
    """The client process."""

    process: subprocess.Popen[str]
    home: Path
    store: dict[str, str] = field(default_factory=dict)
    """Variables that lead another process to the same store, stack and project."""

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if "error" in reply:
            raise AssertionError(reply["error"])
        return reply["result"]

    def submit(self, pipeline: str, folder: Path, *, options: dict[str, Any] | None = None, **arguments: Any) -> Job:
        ids = self.ask(
            "submit",
            module="graphs",
            pipeline=pipeline,
            options=options or {},
            arguments={"folder": str(folder), **arguments},
        )
        return Job(self, folder, ids["run"], ids["snapshot"], ids["flow"])


@dataclass
class Job:
    """A submitted run, and the host to run it in."""

    zen: Zen
    folder: Path
    run: str
    snapshot: str
    flow: str

    def environment(self) -> dict[str, str]:
        own = self.folder / f"host-{uuid4()}"
        environment = base_environment(self.zen.home)
        return {
            **environment,
            "ZENML_CONFIG_PATH": str(own / "zenml"),
            **self.zen.store,
            "DISABLE_DATABASE_MIGRATION": "true",
            names.ENV_FLOW_RUN_ID: self.flow,
            names.ENV_RUN_ID: self.run,
            names.ENV_WORK_DIR: str(own / "work"),
            names.ENV_SOURCE_ROOT: str(HERE / "project"),
        }

    def start(self, *arguments: str, **environment: str | None) -> subprocess.Popen[str]:
        """Run ``bridge.host``; a variable that is None is unset."""
        variables = {**self.environment(), **environment}
        return subprocess.Popen(
            [sys.executable, "-m", "bridge.host", *arguments],
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def step(self, name: str, *more: str) -> tuple[int, str]:
        process = self.start("step", "--snapshot-id", self.snapshot, "--step", name, *more)
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output

    def start_pipeline(self, *more: str, **environment: str) -> subprocess.Popen[str]:
        return self.start("pipeline", "--snapshot-id", self.snapshot, "--run-id", self.run, *more, **environment)

    def pipeline(self, *more: str, **environment: str) -> tuple[int, str]:
        process = self.start_pipeline(*more, **environment)
        output, _ = process.communicate(timeout=TIMEOUT)
        print(output)
        return process.returncode, output

    def read(self) -> dict[str, Any]:
        return self.zen.ask("read", run=self.run)

    def statuses(self) -> tuple[str, dict[str, list[str]]]:
        """The run's status, and each step's statuses, attempt by attempt."""
        read = self.read()
        steps: dict[str, list[str]] = {}
        for step in sorted(read["steps"], key=lambda step: step["version"]):
            steps.setdefault(step["name"], []).append(step["status"])
        return read["status"], steps

    def trace(self, step: str) -> list[dict[str, Any]]:
        path = self.folder / f"{step}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def with_a_thread(job: Job, folder: Path) -> str:
    """A PYTHONPATH by which each Python begins with a thread, as some images' agents have it: none may fork then."""
    image = folder / "image"
    image.mkdir()
    (image / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, name='of the image', daemon=True).start()\n"
    )
    return f"{image}{os.pathsep}{job.environment()['PYTHONPATH']}"


def with_uv(job: Job, folder: Path) -> tuple[str, Path]:
    """A PATH on which uv is a program that writes down what it is called with, and the file into which it does."""
    calls, program = folder / "calls", folder / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\necho some==1.0\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{job.environment()['PATH']}", calls


def client(home: Path, store: dict[str, str]) -> Iterator[Zen]:
    """A client process with a stack of its own, ended with the fixture."""
    databases.put("zenml", home / "zenml" / databases.ZENML_STORE)
    process = subprocess.Popen(
        [sys.executable, str(HERE / "stack" / "zen.py")],
        env={**base_environment(home), **store},
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(home / "zen.log").open("w"),
        text=True,
    )
    zen = Zen(process, home, store)
    found = zen.ask("setup", artifacts=str(home / "artifacts"))
    zen.store = {"ZENML_STORE_URL": found.pop("url"), **store, **found}
    yield zen
    assert process.stdin
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(autouse=True)
def no_store_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process runner's sandboxes inherit this process's variables; those of tests/integration last a session."""
    for name in [name for name in os.environ if name.startswith("ZENML_STORE")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def zen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zen]:
    """A local store."""
    yield from client(tmp_path_factory.mktemp("home"), {})


@pytest.fixture(scope="session")
def served_zen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zen]:
    """A store behind a server."""
    folder = tmp_path_factory.mktemp("served")
    server = zenml_server(folder).start()
    try:
        variables = zenml_client_environment(folder / "client", server)
        yield from client(folder, {name: value for name, value in variables.items() if "STORE" in name})
    finally:
        server.stop()

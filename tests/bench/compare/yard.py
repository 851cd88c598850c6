"""Both servers, a loopback Modal and the stacks: runs one cell in a fresh process and reads what it took."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from modal_proto.api_grpc import ModalClientBase

from tests import servers
from tests.bench.compare.scenarios import SCENARIOS, Cell, Scenario, Way, scenario, way
from tests.bench.compare.startup import breakdown
from tests.bench.rig import Rig, processor_seconds
from tests.integration.lab import STACK_CODE
from tests.loopback import LoopbackImage, LoopbackModal

PROJECT = Path(__file__).parent / "project"
NATIVE_PYTHON = servers.ROOT / ".venv-native" / "bin" / "python"
OUR_IMAGE, NATIVE_IMAGE = "registry.example.com/ours:1", "registry.example.com/native:1"
PATIENCE_SECONDS = 900
QUIET_SECONDS = 60.0
"""How long sandboxes may outlive their run, and the user's process its last call."""
REST_SECONDS, AT_REST_PERCENT = 20.0, 25.0
"""How long to wait for the processors to be idle before a measurement, and what that means."""

Figures = dict[str, Any]

# A container has an /app of its own, into which ZenML unpacks the user's code. There are no containers here, so each
# process gets a view of the file system in which /app is its sandbox's folder. Takes root.
PRIVATE_APP = """#!/bin/sh
mkdir -p /app
exec unshare --mount sh -c 'mount --bind "$PWD" /app && exec "$0" "$@"' {python} "$@"
"""


class Caller:
    """A fresh process of the user's, which calls one pipeline as often as it is told to: ``project/call.py``."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def call(self) -> Figures:
        """Call it, and return what the process says of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        patience = threading.Timer(PATIENCE_SECONDS, self._process.kill)
        patience.start()
        try:
            self._process.stdin.write("call\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            patience.cancel()
        if not answer:
            raise self.failure()
        found: Figures = json.loads(answer)
        return found

    def failure(self) -> RuntimeError:
        """What to say of a process that ended otherwise than by itself, after its last answer."""
        log = self._log.read_text(errors="replace")[-3000:]
        return RuntimeError(f"The process ended with {self._process.wait()}:\n{log}")


@dataclass
class Yard:
    """Everything that runs throughout."""

    folder: Path
    rig: Rig
    modal: LoopbackModal
    scenarios: tuple[Scenario, ...] = SCENARIOS
    stacks: dict[str, str] = field(default_factory=dict)
    _names: Iterator[int] = field(default_factory=itertools.count)

    def measure(self, cell: Cell) -> dict[Cell, Figures]:
        """Measure it once, and with it the run that comes before it in the same process, where one does.

        Raises ``RuntimeError`` unless each run and every step of it completed.
        """
        chosen, how = scenario(cell.scenario, self.scenarios), way(cell.way)
        before = [dataclasses.replace(cell, scenario=chosen.after)] if chosen.after else []
        self.modal.set(cold_start=cell.cold_start)
        _rest()
        with self._caller(chosen, how) as caller:
            return {each: self._run(each, chosen, caller) for each in [*before, cell]}

    def _run(self, cell: Cell, chosen: Scenario, caller: Caller) -> Figures:
        known = {box.id for box in self.modal.sandboxes()}
        calls, machine = self._calls(), _machine_seconds()
        at_servers = [processor_seconds(server) for server in self.rig.servers]
        answer = caller.call()
        _check(cell, answer, chosen.steps)
        self._until_quiet()
        boxes = [box for box in self.modal.sandboxes() if box.id not in known]
        now = [processor_seconds(server) for server in self.rig.servers]
        begin = answer["begin"]
        first = min((box.created_at for box in boxes), default=begin)
        return {
            "wall_s": answer["wall_s"],
            "sandboxes": len(boxes),
            "sandbox_s": sum(box.seconds for box in boxes),
            "gpu_s": sum(box.seconds * box.gpu_count for box in boxes),
            "step_s": _apart(answer["step_starts"]),
            "first_sandbox_s": first - begin,
            "control_calls": self._calls() - calls,
            "client_cpu_s": answer["client_cpu_s"],
            "client_peak_mb": answer["client_peak_mb"],
            "zenml_server_cpu_s": now[0] - at_servers[0],
            "prefect_server_cpu_s": now[1] - at_servers[1],
            "machine_cpu_s": _machine_seconds() - machine,
            **(breakdown(answer["samples"], begin, first) if chosen.sampled else {}),
        }

    @contextlib.contextmanager
    def _caller(self, chosen: Scenario, how: Way) -> Iterator[Caller]:
        asked, log = self.folder / "asked.json", self.folder / "call.log"
        image = None if how.local else NATIVE_IMAGE if how.stack == "native" else OUR_IMAGE
        wanted = {
            "name": f"{chosen.pipeline}-{next(self._names)}",
            "pipeline": f"dynamic_{chosen.pipeline}" if how.dynamic else chosen.pipeline,
            "arguments": chosen.arguments,
            "settings": {**how.settings, **(chosen.settings if how.ours else {})},
            "image": image,
            "sample": chosen.sampled,
        }
        asked.write_text(json.dumps(wanted))
        python = NATIVE_PYTHON if how.stack == "native" else Path(sys.executable)
        command = [python, PROJECT / "call.py", asked]
        pipe, environment = subprocess.PIPE, self._environment(how)
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=pipe, stdout=pipe, stderr=output, text=True
            ) as process,
        ):
            try:
                caller = Caller(process, log)
                yield caller
                process.communicate(timeout=QUIET_SECONDS)  # it ends when nothing more is asked
                if process.returncode:
                    raise caller.failure()
            finally:
                process.kill()

    def _environment(self, how: Way) -> dict[str, str]:
        environment = {
            **self.rig.environment,
            **self.modal.env,
            "PYTHONPATH": f"{STACK_CODE}:{servers.ROOT}" if how.ours else str(STACK_CODE),
            "ZENML_ACTIVE_STACK_ID": self.stacks[how.stack],
        }
        return self.on_sqlite(environment) if how.local else environment

    def on_sqlite(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The same for a client whose store is on this machine."""
        kept = {name: value for name, value in environment.items() if not name.startswith("ZENML_STORE")}
        return {**kept, **servers.zenml_client_environment(self.folder / "laptop", None)}

    def _calls(self) -> int:
        calls = self.modal.stats().calls
        return sum(number for name, number in calls.items() if hasattr(ModalClientBase, name))

    def _until_quiet(self) -> None:
        deadline = time.monotonic() + QUIET_SECONDS
        while self.modal.stats().alive:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Sandboxes outlive their run: {self.modal.stats()}")
            time.sleep(0.1)


def _rest() -> None:
    """Wait while what was measured before is still ending: the load that is written down lags behind by a minute."""
    deadline = time.monotonic() + REST_SECONDS
    while psutil.cpu_percent(interval=0.5) > AT_REST_PERCENT and time.monotonic() < deadline:
        pass


def _check(cell: Cell, answer: Figures, steps: int) -> None:
    states = answer["steps"]
    if answer["status"] != "completed" or len(states) != steps or set(states.values()) != {"completed"}:
        raise RuntimeError(f"{cell}: a figure counts only for a run that completed: {answer['status']}, {states}")


def _apart(starts: list[float]) -> float:
    """Seconds from one step's start to the next one's, the median of them."""
    return median(after - before for before, after in pairwise(starts))


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system)


def _images(folder: Path) -> dict[str, LoopbackImage]:
    if not NATIVE_PYTHON.exists():
        raise RuntimeError("There is no .venv-native: `make .venv-native/.done` makes it.")
    private = folder / "native" / "python"
    private.parent.mkdir(parents=True)
    private.write_text(PRIVATE_APP.format(python=NATIVE_PYTHON))
    private.chmod(0o755)
    stack_code = {"/opt/stack-code": STACK_CODE}
    environment = {"PYTHONPATH": "/opt/stack-code", "ZENML_ANALYTICS_OPT_IN": "false"}
    ours = servers.ROOT / ".venv-sandbox" / "bin" / "python"
    # The server fills in how it can be reached: the native controller makes sandboxes of its own.
    return {
        OUR_IMAGE: LoopbackImage(ours, environment, stack_code),
        NATIVE_IMAGE: LoopbackImage(private, environment, stack_code),
    }


@contextlib.contextmanager
def yard(folder: Path, scenarios: tuple[Scenario, ...] = SCENARIOS) -> Iterator[Yard]:
    """Start everything, with its data in ``folder``, and end it at the end."""
    rig = Rig(folder, servers.prefect_server(folder), servers.zenml_server(folder))
    images = _images(folder)
    with contextlib.ExitStack() as stack:
        modal = stack.enter_context(LoopbackModal(images))
        native = images[NATIVE_IMAGE]
        modal.image_changes(NATIVE_IMAGE, LoopbackImage(native.python, {**native.env, **_reach(modal)}, native.files))
        for server in rig.servers:
            stack.callback(server.stop)
            server.start()
        found = Yard(folder, rig, modal, scenarios)
        found.stacks = _register(found)
        yield found


def _reach(modal: LoopbackModal) -> dict[str, str]:
    """How a sandbox reaches the server. Not the token: ZenML's orchestrator brings that itself."""
    return {name: value for name, value in modal.env.items() if "TOKEN" not in name}


def _register(ours: Yard) -> dict[str, str]:
    artifacts = ours.folder / "artifacts"
    artifacts.mkdir()
    module = "compare.stacks"
    environment = {**ours.rig.environment, "PYTHONPATH": str(STACK_CODE)}
    remote = ours.rig.process(module, {"artifacts": str(artifacts)}, environment)
    local = ours.rig.process(module, {"artifacts": None}, ours.on_sqlite(environment))
    return {**local, **remote, "zenml local": local["zenml local"]}

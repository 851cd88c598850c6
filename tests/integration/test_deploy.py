"""The wheel alone, in an environment and a folder of its own: it registers, deploys, and a worker runs a snapshot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from bridge import names
from tests import ports, servers
from tests.docs.console import blocks
from tests.integration.lab import PROJECT, STACK_CODE, Lab, Ran, eventually
from tests.integration.test_sweep import status, submitted
from tests.integration.test_sweep_meanwhile import put_into, state_of
from tests.integration.test_sweep_operators import left_on_modal
from tests.integration.under import living
from tests.integration.workers import Worker, make_pool

HOW_TO = servers.ROOT / "docs" / "how-to" / "deployments.md"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but the wheel and its extra `local`. Returns its `bin`.

    Of Prefect and Modal it gets the releases that the tests run with, since the servers are of these; and of what the
    oldest Prefect can't be had with the newest of, or doesn't declare (`make test-floor`).
    """
    folder = tmp_path_factory.mktemp("wheel")
    uv = str(servers.ROOT / ".venv" / "bin" / "uv")
    run = {"check": True, "capture_output": True, "text": True}
    subprocess.run([uv, "build", "--wheel", "--out-dir", str(folder), str(servers.ROOT)], **run)  # type: ignore[call-overload]
    wheel = next(folder.glob("*.whl"))
    subprocess.run([uv, "venv", str(folder / "venv"), "--python", sys.executable], **run)  # type: ignore[call-overload]
    python = str(folder / "venv" / "bin" / "python")
    wanted = {"prefect", "modal", "fastapi", "importlib_metadata"}
    found = wanted & {each.name.replace("-", "_") for each in distributions()}
    # By name: setuptools, once imported, adds what it brings along to what `distributions` finds.
    releases = [f"{name}=={version(name)}" for name in sorted(found)]
    subprocess.run([uv, "pip", "install", "--python", python, f"{wheel}[local]", *releases], **run)  # type: ignore[call-overload]
    return folder / "venv" / "bin"


def test_the_wheel_ships_bridge_only(installed: Path) -> None:
    site = next((installed.parent / "lib").glob("python*/site-packages"))
    record = next(site.glob("zenml_modal_prefect-*.dist-info")) / "RECORD"
    tops = {line.split("/")[0].split(",")[0] for line in record.read_text().splitlines()}
    assert {top for top in tops if not top.endswith(".dist-info") and top != ".."} == {"bridge"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial(installed: Path, tmp_path: Path) -> None:
    """A stranger's way, as the tutorial has it: the wheel, its commands and files; no server runs."""
    environment = {**servers.clean_environment(), **servers.zenml_client_environment(tmp_path / "zenml", None)}
    environment |= {
        "HOME": str(tmp_path),
        "PATH": f"{installed}:{environment['PATH']}",
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "DO_NOT_TRACK": "1",
        "TMPDIR": str(tmp_path),
    }
    said: dict[str, str] = {}
    for block in blocks(servers.ROOT / "docs" / "tutorial.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        for command in block.commands if block.language == "console" and block.note != "install" else []:
            ran = subprocess.run(
                command,
                shell=True,
                env=environment,
                cwd=tmp_path,
                check=False,
                capture_output=True,
                text=True,
            )
            said[command] = ran.stdout + ran.stderr
            assert (ran.returncode != 0) == (block.note == "fails"), f"{command}\n{said[command]}"
    assert "Nothing is wrong." in said["modal-prefect doctor"]
    assert "340 on average, 310 from the cheapest to the dearest" in said["python prices.py"]
    assert "3  report  <- mean, spread" in said["modal-prefect plan prices"]
    for words in ("ZeroDivisionError", "divide", "all is well here"):
        assert words in said["python broken.py"]


OPERATED = """
from zenml import pipeline, step


@step
def ask() -> int:
    return 6


@step(step_operator="here")
def answer(number: int) -> None:
    print(f"the answer is {number * 7}")


@pipeline(enable_cache=False)
def mine() -> None:
    answer(ask())


mine()
"""
WITH_OPERATOR = [
    "zenml step-operator flavor register bridge.flavors.ModalPrefectStepOperatorFlavor",
    "zenml step-operator register here --flavor modal-prefect --runner=process",
    "zenml stack register operated -o default -a default -s here --set",
    "python operated.py",
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_step_operator_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """On ZenML's own orchestrator and local store; Prefect isn't asked, nor is Modal."""
    environment = {**servers.clean_environment(), **servers.zenml_client_environment(tmp_path / "zenml", None)}
    environment |= {"HOME": str(tmp_path), "PATH": f"{installed}:{environment['PATH']}", "TMPDIR": str(tmp_path)}
    (tmp_path / "operated.py").write_text(OPERATED)
    said = ""
    for command in WITH_OPERATOR:
        ran = subprocess.run(
            command, shell=True, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True
        )
        said = ran.stdout + ran.stderr
        assert ran.returncode == 0, f"{command}\n{said}"
    assert "Using step operator `here` to run step `answer`" in said
    assert "the answer is 42" in said


def test_the_readme_says_what_the_tutorial_says() -> None:
    tutorial = {command for block in blocks(servers.ROOT / "docs" / "tutorial.md") for command in block.commands}
    section = (servers.ROOT / "README.md").read_text().split("## In your own project")[1].split("```")[1]
    commands = [line[2:] for line in section.splitlines() if line.startswith("$ zenml")]
    assert len(commands) == 3
    assert set(commands) <= tutorial


class Laptop:
    """Somebody's machine: commands are typed as they stand on the pages, with a port of the tests' own."""

    def __init__(self, installed: Path, folder: Path) -> None:
        self.folder, self.port = folder, ports.free_port()
        self.known = {"clone": str(servers.ROOT)}
        self.terminals: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **servers.clean_environment(),
            **servers.zenml_client_environment(folder / "zenml", None),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PATH": f"{installed}:{os.environ['PATH']}",
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_PORT": str(self.port),
            "DO_NOT_TRACK": "1",
            "COLUMNS": "300",
        }

    @property
    def log(self) -> str:
        return (self.folder / "terminals.log").read_text()

    def type(self, command: str) -> str:
        """Run a command to its end and return what it says; one that stays, in a terminal of its own."""
        for name, value in self.known.items():
            command = command.replace(f"<{name}>", value)
        command = command.replace(":4200", f":{self.port}")
        assert not re.search(r"<\w", command), f"{command}: not known"
        run = {"shell": True, "env": self.environment, "cwd": self.folder}
        if command.endswith("server start") or " worker " in command:
            with (self.folder / "terminals.log").open("ab") as log:
                self.terminals.append(subprocess.Popen(f"exec {command}", stdout=log, stderr=log, **run))  # type: ignore[call-overload]
            if command.endswith("server start"):
                assert eventually(lambda: self.ask("/health") is True, bool, 120), self.log[-3000:]
            return ""
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, **run)  # type: ignore[call-overload]
        said = ran.stdout + ran.stderr
        assert ran.returncode == 0, f"{command}\n{said}\n{self.log[-3000:]}"
        if found := re.search(r"UUID: ([0-9a-f-]{36})", said):
            self.known["flow run id"] = found[1]
        if snapshots := re.findall(r"([0-9a-f-]{36})[^\n]*tonight", said):
            self.known["snapshot id"] = snapshots[0]
        return said

    def ask(self, path: str) -> Any:
        """What Prefect's server answers; None where there is none yet."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/api{path}", timeout=30).json()
        except httpx.TransportError:
            return None

    def ends(self) -> tuple[str, str]:
        """The state of the last flow run, and the status of its ZenML run."""
        listed = self.type("zenml pipeline runs list --orchestrator_run_id <flow run id> --output json")
        (status,) = re.findall(r'"status": "(\w+)"', listed)
        return self.ask(f"/flow_runs/{self.known['flow run id']}")["state"]["name"], status

    def logs(self) -> str:
        """What Prefect has of its output."""
        return self.type("prefect flow-run logs <flow run id>")

    def close(self) -> None:
        for terminal in reversed(self.terminals):
            terminal.terminate()
            terminal.wait(60)


def followed() -> list[str]:
    """What is typed on a laptop, from the stack to a run through a worker."""
    docs = servers.ROOT / "docs"
    tutorial = [command for block in blocks(docs / "tutorial.md") for command in block.commands]
    stack = [command for command in tutorial if command.startswith("zenml")]
    return [*stack, *(command for block in blocks(docs / "how-to" / "laptop.md") for command in block.commands)]


HELD = """    import os
    from pathlib import Path
    from time import sleep

    Path("{folder}/begun").write_text(str(os.getpid()))
    while not Path("{folder}/released").exists():
        sleep(0.05)
"""
"""What the step does first: it says which process it is, and goes on when the test lets it."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_way_on_a_laptop(installed: Path, tmp_path: Path) -> None:
    """Deployed, run, watched, cancelled and run again, by what stands in the how-tos; the tutorial's pipeline, held.

    The worker's terminal shows no line twice, and none for a request.
    """
    (prices,) = [block for block in blocks(servers.ROOT / "docs" / "tutorial.md") if block.title == "prices.py"]
    begin = "def report(mean: float, spread: float) -> None:\n"
    assert begin in prices.text
    (tmp_path / "prices.py").write_text(prices.text.replace(begin, begin + HELD.format(folder=tmp_path)))
    parts = {block.note.removesuffix(": begin"): block.commands for block in blocks(HOW_TO)}
    laptop = Laptop(installed, tmp_path)
    try:
        for command in followed():
            laptop.type(command)
        first = laptop.known["flow run id"]
        begun = tmp_path / "begun"
        process = eventually(lambda: begun.exists() and begun.read_text(), bool, 240)
        assert process, laptop.log[-5000:]
        for command in [*parts["run"][1:], *parts["cancel"]]:
            laptop.type(command)
        assert eventually(laptop.ends, lambda ends: ends == ("Cancelled", "stopped"), 60) == ("Cancelled", "stopped")
        assert not living(int(process))
        (tmp_path / "released").touch()
        for command in parts["again"]:
            laptop.type(command)
        assert (laptop.ends(), laptop.known["flow run id"] != first) == (("Completed", "completed"), True)
        assert laptop.log.count("Taken from ZenML's cache") == 3, laptop.log[-5000:]
        logs = eventually(laptop.logs, lambda logs: "340 on average" in logs, 30)
        assert "340 on average, 310 from the cheapest to the dearest" in logs
        assert "HTTP Request" not in laptop.log
        assert '"task_run_id"' not in laptop.log, "ZenML shows it as well"
    finally:
        laptop.close()


def test_the_readme_deploys_as_the_how_to_does() -> None:
    section = (servers.ROOT / "README.md").read_text().split("## Deploying")[1].split("```")[1]
    commands = [line[2:].partition("  #")[0].strip() for line in section.splitlines() if line.startswith("$ ")]
    assert len(commands) == 4
    parts = [part for command in followed() for part in command.strip("()").split(" && ")]
    typed = {part.replace("<snapshot id>", "<id>") for part in parts}
    assert set(commands) <= typed


@pytest.fixture(scope="module")
def worker(
    lab: Lab, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`prefect deploy --all` from the clone, and a process worker elsewhere that has the wheel alone; and its log."""
    folder = tmp_path_factory.mktemp("elsewhere")
    prefect = str(installed / "prefect")
    # The flavour of the test stack's artifact store, which an installed integration would bring.
    environment = {**os.environ, "PYTHONPATH": str(STACK_CODE)}
    run = {"env": environment, "check": True, "capture_output": True}
    subprocess.run([prefect, "work-pool", "create", "zenml", "--type", "process"], cwd=folder, **run)  # type: ignore[call-overload]
    deployed = subprocess.run([prefect, "--no-prompt", "deploy", "--all"], cwd=servers.ROOT, **run)  # type: ignore[call-overload]
    assert b"HTTP Request" not in deployed.stdout + deployed.stderr
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [prefect, "worker", "start", "--pool", "zenml"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        yield process, folder / "worker.log"
        process.terminate()
        process.wait(30)


def test_a_worker_runs_a_snapshot(
    lab: Lab, worker: tuple[subprocess.Popen[bytes], Path], installed: Path, tmp_path: Path
) -> None:
    import shapes
    from zenml.client import Client
    from zenml.config import DockerSettings
    from zenml.utils import source_utils

    source_utils.set_custom_source_root(str(PROJECT))
    lab.activate(lab.stack("modal"))
    docker = DockerSettings(parent_image="registry.example.com/ml:1", skip_build=True)
    diamond = shapes.diamond.with_options(settings={"docker": docker})
    diamond.prepare(str(tmp_path))
    snapshot = diamond.create_snapshot(name=f"deployed-{tmp_path.name}")
    started = subprocess.run(
        [
            *(str(installed / "prefect"), "deployment", "run", "modal-prefect/modal-prefect"),
            *("-p", f"snapshot_id={snapshot.id}"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert started.returncode == 0, started.stderr + started.stdout
    found_id = re.search(r"UUID: ([0-9a-f-]{36})", started.stdout)
    assert found_id, started.stdout
    flow_run_id = UUID(found_id[1])

    def read():  # type: ignore[no-untyped-def]
        found = Client().list_pipeline_runs(orchestrator_run_id=str(flow_run_id), hydrate=True).items
        return found[0] if found else None

    run = eventually(read, lambda found: found is not None and found.status.is_finished, 180)
    assert run is not None, worker[1].read_text()[-3000:]
    ran = lab.read(Ran(tmp_path), run.id)
    deadline = time.monotonic() + 30
    while not ran.flow_run.state.is_final() and time.monotonic() < deadline:
        time.sleep(0.5)
        ran = lab.read(ran, run.id)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert set(ran.steps) == {"one", "left", "right", "bottom"}
    assert ran.flow_run.name == ran.run.name
    assert f"zenml_run_id:{ran.run.id}" in ran.flow_run.tags
    assert worker[0].poll() is None
    log = worker[1].read_text()
    assert "HTTP Request" not in log
    assert '"flow_run_id"' not in log, "ZenML shows it as well"
    assert log.count("Finished in state Completed") == 2, "of the flow and of the task that is its sandbox"


# Slow: test_sweep.py shows quickly what the flow does, and that Prefect runs what is deployed.
@pytest.mark.slow
def test_a_worker_sweeps(lab: Lab, worker: tuple[subprocess.Popen[bytes], Path], installed: Path) -> None:
    """It runs the deployed sweep: a run whose flow crashed ends on both sides, with the sandbox that was left."""
    from prefect.flows import load_flow_from_entrypoint
    from prefect.states import Crashed

    pool = f"idle-{uuid4().hex[:6]}"
    make_pool(pool)
    stack = lab.stack("modal", work_pool=pool, synchronous=False)
    orphan, owned = submitted(lab, stack), submitted(lab, stack)
    put_into(orphan, Crashed(message="no such image"))
    left, kept = (left_on_modal(lab.modal.token, stack, run, None) for run in (orphan, owned))
    deployment = "modal-prefect-sweep/modal-prefect-sweep"
    swept = subprocess.run(
        [str(installed / "prefect"), "deployment", "run", deployment, "-p", f"stack={stack}", "--watch"],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    log = worker[1].read_text()
    assert swept.returncode == 0, f"{swept.stdout}{swept.stderr}{log[-3000:]}"
    assert "Ended 1 runs, left 0 that nobody owns." in log
    assert (status(orphan), state_of(orphan), lab.modal.sandbox(left).status) == ("failed", "Failed", "terminated")
    assert (status(owned), lab.modal.sandbox(kept).status) == ("provisioning", "running")
    assert state_of(owned) in ("Scheduled", "Late"), "no worker takes it"
    lab.modal.kill(kept)
    assert load_flow_from_entrypoint(str(servers.ROOT / "flows" / "sweep.py:sweep_stacks")).name == names.SWEEP


@pytest.mark.slow
def test_a_worker_runs_what_is_submitted_through_its_pool(
    lab: Lab, worker: tuple[subprocess.Popen[bytes], Path]
) -> None:
    """A static and a dynamic pipeline, whose code it can't have."""
    import dynamics
    import shapes

    stack = lab.stack("modal", work_pool="zenml")
    static, dynamic = lab.run(shapes.chain, stack, length=1), lab.run(dynamics.inner, stack, value=1)
    for ran in (static, dynamic):
        assert ran.error is None
        assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
        assert ran.flow_run.work_pool_name == "zenml"
    assert dynamic.run.outputs["inner"].load() == 2
    assert set(dynamic.states) == {"inner", "apart"}
    assert worker[0].poll() is None


@pytest.mark.slow
def test_a_snapshot_of_local_processes(lab: Lab, tmp_path: Path) -> None:
    """`modal-prefect worker` runs it where it was started: nothing else says where the code is."""
    import shapes
    from prefect.client.orchestration import get_client
    from zenml.client import Client

    from bridge import names

    pool = f"pool-{tmp_path.name}"[:60]
    make_pool(pool)
    lab.activate(lab.stack("process"))
    shapes.diamond.prepare(str(tmp_path))
    snapshot = shapes.diamond.create_snapshot(name=f"local-{tmp_path.name}")
    worker = Worker(pool, tmp_path / "worker", command=("modal-prefect", "worker"), cwd=PROJECT).start()
    try:
        with get_client(sync_client=True) as client:
            flow = client.create_flow_from_name(names.DEPLOYMENT)
            deployment = client.create_deployment(
                flow, pool, entrypoint=names.FLOW_ENTRYPOINT, work_pool_name=pool, pull_steps=[]
            )
            made = client.create_flow_run_from_deployment(deployment, parameters={"snapshot_id": str(snapshot.id)})

        def read():  # type: ignore[no-untyped-def]
            found = Client().list_pipeline_runs(orchestrator_run_id=str(made.id), hydrate=True).items
            return found[0] if found else None

        run = eventually(read, lambda found: found is not None and found.status.is_finished, 180)
    finally:
        worker.stop()
    assert run is not None, worker.log.read_text()[-3000:]
    assert run.status.value == "completed", worker.log.read_text()[-3000:]

"""A graceful stop on a local ZenML database, whose heartbeats don't bring a run's status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers
from tests.integration.lab import PROJECT, STACK_CODE, Lab, Ran, eventually

SCRIPT = """
import sys
import stoppable
from zenml.client import Client
from zenml.enums import StackComponentType

client = Client()
client.create_flavor("bridge.flavors.ModalPrefectOrchestratorFlavor", StackComponentType.ORCHESTRATOR)
own = {"runner": "process", "execution_mode": "per_step"}
client.create_stack_component("ours", "modal-prefect", StackComponentType.ORCHESTRATOR, own)
components = {StackComponentType.ORCHESTRATOR: "ours", StackComponentType.ARTIFACT_STORE: "default"}
client.create_stack("ours", components=components)
client.activate_stack("ours")
stoppable.clinging(sys.argv[1])
"""


@pytest.mark.slow  # a minute: a heartbeat of 15 s and a grace of 30 s
def test_steps_are_interrupted_and_have_their_grace(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    outer = {key: value for key, value in os.environ.items() if not key.startswith("ZENML")}
    environment = {**outer, **servers.zenml_client_environment(tmp_path / "zenml", None)}
    environment["PYTHONPATH"] = f"{STACK_CODE}:{PROJECT}"
    log = tmp_path / "script.log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)], env=environment, cwd=PROJECT, stdout=output, stderr=output
        )

    def zenml(*words: str) -> str:
        argv = [str(Path(sys.executable).with_name("zenml")), *words]
        return subprocess.run(argv, env=environment, cwd=PROJECT, capture_output=True, text=True, check=True).stdout

    ran = Ran(tmp_path)
    try:
        begun = eventually(lambda: ran.traces("hangs") and ran.traces("clings"), bool, 150)
        assert begun, log.read_text()[-3000:]
        run_id = re.search(r"[0-9a-f]{8}(-[0-9a-f]+){4}", zenml("pipeline", "runs", "list", "--output=csv", "-c", "id"))
        assert run_id
        zenml("pipeline", "runs", "stop", run_id[0], "--graceful", "--yes")
        assert eventually(lambda: ran.traces("clings", "interrupted"), bool, 25)
        assert running.wait(90) != 0
    finally:
        running.kill()
        running.wait()
    assert "The run was stopped: it was stopped in ZenML." in log.read_text()
    assert "stopped" in zenml("pipeline", "runs", "list", "--output=csv", "-c", "status")
    assert not ran.traces("hangs", "end")

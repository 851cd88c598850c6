"""The command line, as it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from tests.integration.lab import Lab

COMMAND = str(Path(sys.executable).parent / "modal-prefect")


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], env=dict(os.environ), check=False, capture_output=True, text=True)


def test_help_teaches() -> None:
    shown = call("--help")
    assert shown.returncode == 0
    assert "plan" in shown.stdout


def test_a_snapshot_that_does_not_exist(lab: Lab) -> None:
    missing = str(uuid4())
    shown = call("plan", missing)
    assert shown.returncode == 1
    assert f"snapshot_id={missing}: this ZenML server has no such snapshot" in shown.stderr


def test_a_pipeline_that_does_not_exist(lab: Lab) -> None:
    shown = call("plan", "nobody-wrote-this")
    assert shown.returncode == 1
    assert "nobody-wrote-this: this ZenML server has no pipeline of that name" in shown.stderr

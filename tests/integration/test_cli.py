"""The command line, as it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.lab import Lab

COMMAND = str(Path(sys.executable).parent / "modal-prefect")


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], env=dict(os.environ), check=False, capture_output=True, text=True)


def test_help_teaches() -> None:
    shown = call("--help")
    assert shown.returncode == 0
    assert "plan" in shown.stdout


@pytest.mark.parametrize(
    ("shell", "says"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef modal-prefect"), ("fish", "complete --no-files --command")],
)
def test_each_shell_completes(shell: str, says: str) -> None:
    asked = {**os.environ, "_MODAL_PREFECT_COMPLETE": f"{shell}_source"}
    said = subprocess.run([COMMAND], env=asked, check=False, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert says in said.stdout
    assert "modal-prefect" in said.stdout


def test_what_a_shell_asks_is_answered() -> None:
    asked = {
        **os.environ,
        "_MODAL_PREFECT_COMPLETE": "bash_complete",
        "COMP_WORDS": "modal-prefect do",
        "COMP_CWORD": "1",
    }
    said = subprocess.run([COMMAND], env=asked, check=False, capture_output=True, text=True)
    assert said.stdout.split() == ["plain,doctor"], said.stderr


def test_a_snapshot_that_does_not_exist(lab: Lab) -> None:
    missing = str(uuid4())
    shown = call("plan", missing)
    assert shown.returncode == 1
    assert f"snapshot_id={missing}: this ZenML server has no such snapshot" in shown.stderr


def test_a_pipeline_that_does_not_exist(lab: Lab) -> None:
    shown = call("plan", "nobody-wrote-this")
    assert shown.returncode == 1
    assert "nobody-wrote-this: this ZenML server has no pipeline of that name" in shown.stderr

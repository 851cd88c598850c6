"""What a submission needs is imported beside ZenML's preparations: once, and complete when it is waited for."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc
import sys
from bridge.submitting import ahead
assert "prefect" not in sys.modules and "modal" not in sys.modules
begun = ahead.imports("{runner}")
assert ahead.imports("{runner}") is begun
begun.result(120)
assert gc.isenabled()
from bridge.submitting.submission import create_flow_run
print("modal" in sys.modules)
"""


@pytest.mark.parametrize(("runner", "modal"), [("modal", "True"), ("process", "False")])
def test_everything_for_a_runner_and_nothing_of_another(runner: str, modal: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(runner=runner)], capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.stdout.split()[-1:] == [modal], ran.stderr

"""A short series of random runs under random faults; that bugs planted into the package are found."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers
from tests.chaos import planted_bugs
from tests.chaos.case import make_case

HERE = Path(__file__).parent


@pytest.mark.timeout(600)
def test_a_few_runs(tmp_path: Path) -> None:
    """Two small ones, on each backend and in each mode one: a flow that dies, an interrupted run, Prefect away."""
    command = [sys.executable, "-m", "tests.chaos", "--small", "--seed", "7", "--count", "2"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "chaos")],
        cwd=servers.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]


def test_the_model_knows_nothing_of_the_package() -> None:
    """Nor does what it imports."""
    for module in ("model", "case", "seen"):
        tree = ast.parse((HERE / f"{module}.py").read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        strange = [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]
        assert set(strange) <= {"tests.chaos.case", "tests.chaos.seen"}, module


def test_a_seed_makes_the_same_case_again() -> None:
    made = [sys.executable, "-c", "from tests.chaos.case import make_case; print(make_case(7).as_json())"]
    again = subprocess.run(made, cwd=servers.ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, stdout=subprocess.PIPE)
    assert again.stdout.decode().strip() == make_case(7).as_json()


@pytest.mark.parametrize("name", planted_bugs.NAMES)
def test_a_planted_bug_can_be_planted(name: str, tmp_path: Path) -> None:
    """The patches keep up with the package."""
    planted_bugs.plant(name, tmp_path)
    module = next(
        line[6:] for line in (HERE / "planted" / f"{name}.patch").read_text().splitlines() if line[:3] == "+++"
    )
    assert (tmp_path / module).read_text() != (servers.ROOT / module).read_text()
    ast.parse((tmp_path / module).read_text())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", planted_bugs.NAMES)
def test_a_planted_bug_is_found(name: str) -> None:
    found, printed = planted_bugs.look_for(name)
    assert found, printed[-8000:]

"""Every private name of ZenML that the package uses still exists."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from bridge import upstream_zenml


@pytest.mark.parametrize("name", upstream_zenml.PRIVATE_NAMES)
def test_the_private_name_still_exists(name: str) -> None:
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)


def test_a_step_run_is_run_with_the_arguments_that_zenml_takes() -> None:
    from zenml.orchestrators.step_launcher import StepLauncher

    parameters = inspect.signature(StepLauncher._run_step).parameters
    assert list(parameters) == ["self", "pipeline_run", "step_run", "force_write_logs"]


def test_no_private_name_of_zenml_is_imported_elsewhere() -> None:
    root = Path(upstream_zenml.__file__).parent
    private = re.compile(r"^\s*from zenml[.\w]* import .*\b_\w", re.MULTILINE)
    offenders = [path for path in root.rglob("*.py") if private.search(path.read_text())]
    assert offenders in ([], [root / "upstream_zenml.py"])

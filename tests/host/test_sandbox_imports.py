"""A sandbox's image has ZenML, and of this package's own requirements nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_SANDBOXES = ["bridge.flavors", "bridge.orchestrator", "bridge.step_runs", "bridge.translate"]
IN_SANDBOXES += [
    f"bridge.host.{path.stem}" for path in (ROOT / "bridge" / "host").glob("*.py") if path.stem != "__init__"
]


@pytest.mark.parametrize("module", [module for module in IN_SANDBOXES if not module.endswith("sandbox_main")])
def test_imports_need_zenml_alone(module: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}"
    ran = subprocess.run(
        [str(ROOT / ".venv-sandbox" / "bin" / "python"), "-c", code],
        env={"ZENML_CONFIG_PATH": str(tmp_path), "ZENML_ANALYTICS_OPT_IN": "false", "PATH": "/usr/bin:/bin"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]

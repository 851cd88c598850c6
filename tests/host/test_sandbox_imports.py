"""A sandbox's image has ZenML, and of this package's own requirements nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IN_SANDBOXES = ["bridge.flavors", "bridge.orchestrator", "bridge.zenml_side.step_runs", "bridge.planning.translate"]
IN_SANDBOXES += [
    f"bridge.host.{path.stem}"
    for path in sorted((ROOT / "bridge" / "host").glob("*.py"))
    if path.stem not in ("__init__", "sandbox_main")
]


def test_imports_need_zenml_alone(tmp_path: Path) -> None:
    ran = subprocess.run(
        [str(ROOT / ".venv-sandbox" / "bin" / "python"), str(ROOT / "tests" / "forked.py"), str(ROOT), *IN_SANDBOXES],
        env={"ZENML_CONFIG_PATH": str(tmp_path), "ZENML_ANALYTICS_OPT_IN": "false", "PATH": "/usr/bin:/bin"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"module"')]
    assert [one["module"] for one in found] == IN_SANDBOXES
    assert [one for one in found if one["error"]] == []

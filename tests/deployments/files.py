"""The files of `deployments/`, as the tools that they are for read them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests import servers

DEPLOYMENTS = servers.ROOT / "deployments"
DOCKERFILES = sorted(DEPLOYMENTS.glob("*.Dockerfile"))
ENVIRONMENTS = sorted((DEPLOYMENTS / "environments").glob("*.env"))
TOOLS = servers.ROOT / ".venv-deployments" / "bin"
HERE = Path(__file__).parent


def tool(name: str, *arguments: str | Path, ok: bool = True) -> str:
    """Run a program of `.venv-deployments` and return what it says; unless told otherwise it must succeed."""
    environment = {**servers.clean_environment(), "PREFECT_API_URL": "http://127.0.0.1:9/api", "DO_NOT_TRACK": "1"}
    ran = subprocess.run(
        [TOOLS / name, *arguments], env=environment, cwd=DEPLOYMENTS, check=False, capture_output=True, text=True
    )
    said = ran.stdout + ran.stderr
    assert (ran.returncode == 0) is ok, said
    return ran.stdout if ok else said


def compose(*environments: Path) -> dict[str, Any]:
    """The compose file with the variables of some env files."""
    found: dict[str, Any] = json.loads(
        tool("python", HERE / "read_files.py", "compose", DEPLOYMENTS / "compose.yaml", *environments)
    )
    return found


def environment(path: Path) -> dict[str, str]:
    """An env file's variables."""
    found: dict[str, str] = json.loads(tool("python", HERE / "read_files.py", "environment", path))
    return found


def dockerfile(path: Path) -> dict[str, Any]:
    """The final image's instructions (``final``), its ``environment``, and all build ``arguments``."""
    found: dict[str, Any] = json.loads(tool("python", HERE / "read_files.py", "dockerfile", path))
    return found


def instruction(image: dict[str, Any], name: str) -> str:
    """The value of the last instruction of that name in the final image."""
    found = [value for kind, value in image["final"] if kind == name]
    assert found, f"no {name} in {image['final']}"
    return str(found[-1])


def job(**variables: object) -> dict[str, Any]:
    """The Kubernetes job of the work pool's template with some job variables, and the names that Prefect knows."""
    template = DEPLOYMENTS / "kubernetes" / "job-template.json"
    found: dict[str, Any] = json.loads(tool("python", HERE / "render_job.py", template, json.dumps(variables)))
    return found

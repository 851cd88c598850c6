"""Code that sandboxes fetch from a code repository, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.lab import IMAGE, STACK_CODE, Lab, Ran

COMMIT = "c0ffee"
STEPS = f"""
import pathlib, sys
from zenml import pipeline, step
from zenml.config import DockerSettings


@step(enable_cache=False)
def tell() -> str:
    return (pathlib.Path(__file__).parent / "marker.txt").read_text()


@pipeline
def static():
    tell()


@pipeline(dynamic=True)
def dynamic():
    tell.with_options(runtime="isolated")()


if __name__ == "__main__":
    docker = DockerSettings(
        parent_image={IMAGE!r},
        skip_build=True,
        allow_download_from_artifact_store=False,
        allow_including_files_in_images=False,
    )
    chosen, settings = globals()[sys.argv[1]], {{"docker": docker}}
    if chosen is static:
        settings["orchestrator"] = {{"execution_mode": sys.argv[2]}}
    print(chosen.with_options(settings=settings)().id)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("pipeline", "mode"), [("static", "per_step"), ("static", "pipeline"), ("dynamic", "")])
def test_the_code_is_that_of_the_commit(lab: Lab, tmp_path: Path, pipeline: str, mode: str) -> None:
    from zenml.client import Client
    from zenml.config.source import Source, SourceType

    checkout, commits = tmp_path / "checkout", tmp_path / "commits"
    for folder, marker in ((checkout / "src", "of the checkout"), (commits / COMMIT / "src", "of the commit")):
        folder.mkdir(parents=True)
        (folder / "told.py").write_text(STEPS)
        (folder / "marker.txt").write_text(marker)
    lab.activate(lab.stack("modal"))
    repository = Client().create_code_repository(
        f"folder-{uuid4().hex[:6]}",
        {"checkout": str(checkout), "commits": str(commits), "commit": COMMIT},
        Source(module="folder_repository", attribute="FolderRepository", type=SourceType.USER),
    )
    try:
        done = subprocess.run(
            [sys.executable, "told.py", pipeline, mode],
            cwd=checkout / "src",
            env={**os.environ, "PYTHONPATH": str(STACK_CODE)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (run,) = Client().list_pipeline_runs(sort_by="desc:created", size=1, hydrate=True)
        ran = lab.read(Ran(tmp_path), run.id)
        snapshot = ran.run.snapshot
        assert (snapshot.code_path, snapshot.code_reference.commit) == (None, COMMIT)
        assert (ran.status, ran.run.steps["tell"].output.load()) == ("completed", "of the commit")
    finally:
        Client().delete_code_repository(repository.id)

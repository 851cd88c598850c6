"""Whose account it is where neither component nor environment says so: a profile of `~/.modal.toml`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.modal_lab import IMAGE, ROOT
from tests.loopback import LoopbackModal

SCRIPT = """
import asyncio
from bridge.errors import CredentialsRefused
from bridge.plan import SandboxSpec
from bridge.runners.base import SandboxRequest
from bridge.runners.modal import ModalRunner
async def main(image):
    try:
        async with ModalRunner() as runner:
            request = SandboxRequest(name="box", app="zenml-x", command=("true",), spec=SandboxSpec(image=image))
            print(await (await runner.start(request)).wait())
    except CredentialsRefused as refused:
        print(f"refused: {refused}")
"""


def said(home: Path, cloud: LoopbackModal, **variables: str) -> str:
    """What a program says that makes a sandbox; its SDK finds its configuration as any user's does."""
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    environment = {**elsewhere, "HOME": str(home), "PYTHONPATH": str(ROOT), "MODAL_SERVER_URL": cloud.url, **variables}
    environment["MODAL_DISABLE_API_PROXY"] = "1"
    program = f"{SCRIPT}\nasyncio.run(main({IMAGE!r}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def home(cloud: LoopbackModal, tmp_path: Path) -> Path:
    token_id, token_secret = cloud.token
    (tmp_path / ".modal.toml").write_text(
        f"""
[mine]
token_id = "{token_id}"
token_secret = "{token_secret}"
active = true

[former]
token_id = "ak-former"
token_secret = "as-former"
"""
    )
    return tmp_path


def test_the_active_profile_counts_and_another_where_the_environment_names_it(cloud: LoopbackModal, home: Path) -> None:
    assert said(home, cloud) == "exited with exit code 0\n"
    assert [box.name for box in cloud.sandboxes()] == ["box"]
    former = said(home, cloud, MODAL_PROFILE="former")
    assert former.startswith("refused: ")
    assert "as-former" not in former
    assert len(cloud.sandboxes()) == 1


def test_a_token_of_the_environment_comes_before_that_of_the_profile(cloud: LoopbackModal, home: Path) -> None:
    token_id, token_secret = cloud.token
    pair = {"MODAL_TOKEN_ID": token_id, "MODAL_TOKEN_SECRET": token_secret}
    assert said(home, cloud, MODAL_PROFILE="former", **pair) == "exited with exit code 0\n"


def test_without_any_it_is_said_how_to_get_one(cloud: LoopbackModal, tmp_path: Path) -> None:
    assert "modal setup" in said(tmp_path, cloud)
    assert not cloud.sandboxes()

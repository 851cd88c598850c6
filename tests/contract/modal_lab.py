"""What the tests of the Modal runner share: a loopback Modal, and a client of it on one backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import modal

from bridge.plan import SandboxSpec
from tests.loopback import LoopbackImage

ROOT = Path(__file__).parents[2]
SANDBOX_PYTHON = ROOT / ".venv-sandbox" / "bin" / "python"
IMAGE = "registry.example.com/step:1"
PRIVATE_IMAGE = "registry.example.com/private:1"
ENTERED_IMAGE = "registry.example.com/entered:1"
CREDENTIALS = ("user", "password")
IMAGES = {
    IMAGE: LoopbackImage(SANDBOX_PYTHON, env={"FROM_IMAGE": "yes"}),
    PRIVATE_IMAGE: LoopbackImage(SANDBOX_PYTHON, credentials=CREDENTIALS),
    ENTERED_IMAGE: LoopbackImage(SANDBOX_PYTHON, entrypoint=("echo", "entered")),
}
SECRETS = {"named": {"NAMED_SECRET": "from modal"}}
VOLUMES = ("data", "models")
ENVIRONMENTS = ("main", "staging")
SPEC = SandboxSpec(image=IMAGE, timeout=120, capacity_timeout=30)
TOO_OLD_FOR_V2 = tuple(map(int, modal.__version__.split(".")[:2])) < (1, 6)
BACKENDS = ("v1",) if TOO_OLD_FOR_V2 else ("v1", "v2")
"""The backends that ``Sandbox.create`` of the installed SDK speaks."""
PATIENCE = 60.0


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds that no event tells of. Raises ``AssertionError`` after a minute."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)

"""The contract suite against the runners that need nothing but this machine. Modal's is in tests/loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.runners.contract import CHECKS, KNOWN_GAPS, Check, Lab, perform, run_check
from bridge.runners.process import ProcessRunner
from bridge.runners.scripted import ScriptedRunner


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_process(check: Check, tmp_path: Path) -> None:
    async with ProcessRunner(tmp_path, grace=1) as runner:
        await run_check(check, runner, Lab())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_scripted(check: Check) -> None:
    async with ScriptedRunner(perform) as runner:
        await run_check(check, runner, Lab())


def test_gaps_name_checks() -> None:
    names = {check.__name__ for check in CHECKS}
    assert {name for gaps in KNOWN_GAPS.values() for name in gaps} <= names

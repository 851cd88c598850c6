"""The whole pipeline in one sandbox: a real store, real processes."""

from __future__ import annotations

from pathlib import Path

from tests.host.conftest import Zen


def test_a_diamond(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("diamond", tmp_path)
    code, output = job.pipeline()
    assert code == 0
    done = {name: ["completed"] for name in ("one", "left", "right", "bottom")}
    assert job.statuses() == ("completed", done)
    assert "[one] value 1" in output

"""Each row of docs/features.md names the test that shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "features.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| feature |"))
]


def test_there_are_rows() -> None:
    assert len(ROWS) > 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_a_test_that_exists(row: str) -> None:
    feature, answer, _, shown = (cell.strip() for cell in row.strip("|").split("|"))
    assert answer in ("yes", "no", "refused"), feature
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
    assert named, f"{feature}: no test"
    assert re.search(rf"^\s*(async )?def {named[2]}\b", (ROOT / named[1]).read_text(), re.MULTILINE), shown

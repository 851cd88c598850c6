"""Says at the end of a run of tests which rows of `docs/features.md` it did not show, since a test was skipped."""

from __future__ import annotations

from pathlib import Path

from _pytest.terminal import TerminalReporter

ROWS = Path(__file__).resolve().parents[1] / "docs" / "features.md"


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Loudly: such a row is green, and nobody has seen what it says."""
    rows = [line for line in ROWS.read_text("utf-8").splitlines() if line.startswith("| ")]
    reasons: dict[str, str] = {}
    for report in terminalreporter.stats.get("skipped", []):
        where = report.longrepr
        reason = where[2].removeprefix("Skipped: ") if isinstance(where, tuple) else ""
        reasons[report.nodeid.partition("[")[0]] = reason
    unseen = [
        f"{row.split('|')[1].strip()}: {reason} ({test})"
        for test, reason in reasons.items()
        for row in rows
        if f"`{test}`" in row
    ]
    if unseen:
        terminalreporter.section("rows of docs/features.md that this run did NOT show", red=True, bold=True)
        for line in unseen:
            terminalreporter.line(line, red=True)

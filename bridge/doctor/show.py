"""A report for people, and one for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from bridge.doctor.finding import Finding, Grade

_LOOKS = {
    Grade.OK: ("✓", "green"),
    Grade.NOTE: ("•", "yellow"),
    Grade.PROBLEM: ("✗", "bold red"),
    Grade.UNKNOWN: ("?", "bold magenta"),
    Grade.SKIPPED: ("-", "dim"),
}
_NAMES = 14
_INDENT = _NAMES + 3


def show(console: Console, finding: Finding) -> None:
    """Print one finding: wrapped in a terminal, else a line for what it is and one for its fix."""
    sign, style = _LOOKS[finding.grade]
    head, what = Text(f"{sign} {finding.check:{_NAMES}} ", style), Text(finding.what)
    fix = Text.assemble(("→ ", "cyan"), finding.fix)
    if not console.is_terminal:
        console.print(head + what, soft_wrap=True)
        if finding.fix:
            console.print(Text(" " * _INDENT) + fix, soft_wrap=True)
        return
    first, *others = what.wrap(console, max(20, console.width - _INDENT)) or [Text("")]
    console.print(head + first)
    for line in [*others, *(fix.wrap(console, max(20, console.width - _INDENT)) if finding.fix else [])]:
        console.print(Padding(line, (0, 0, 0, _INDENT)))


def summary(findings: Iterable[Finding]) -> str:
    """One line about all of them."""
    grades = [finding.grade for finding in findings]
    counted = ((grades.count(Grade.PROBLEM), "to be mended"), (grades.count(Grade.UNKNOWN), "couldn't be asked"))
    parts = [f"{count} {what}" for count, what in counted if count]
    return f"{', '.join(parts)}." if parts else "Nothing is wrong."


def as_json(findings: Iterable[Finding]) -> str:
    """All of them, for a program: ``ok``, and for each ``check``, ``grade``, ``what`` and ``fix``."""
    found = list(findings)
    rows = [{"check": one.check, "grade": one.grade.value, "what": one.what, "fix": one.fix} for one in found]
    return json.dumps({"ok": not any(one.grade.is_bad for one in found), "findings": rows}, indent=2)

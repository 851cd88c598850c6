"""What the steps' own code has written down. Standard library only."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.chaos.seen import Attempt


def now() -> float:
    return time.time()


def lines_of(folder: Path, step: str) -> list[dict[str, Any]]:
    """The lines of a step that are whole."""
    path = folder / f"{step}.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def attempts_of(folder: Path, step: str) -> list[Attempt]:
    """All attempts of a step whose own code began."""
    lines = lines_of(folder, step)
    last = {line["number"]: line for line in lines if line["what"] != "begin"}
    return [
        Attempt(
            number=line["number"],
            sandbox=line["sandbox"] or "",
            pid=line["pid"],
            begin=line["time"],
            ended=last[line["number"]]["time"] if line["number"] in last else None,
            how=last[line["number"]]["what"] if line["number"] in last else None,
            beside=tuple(line["beside"]),
        )
        for line in lines
        if line["what"] == "begin"
    ]


def is_running(folder: Path, step: str, attempt: Attempt) -> bool:
    """Whether the process of an attempt is alive, and its code not at its end."""
    (line,) = [line for line in lines_of(folder, step) if line["what"] == "begin" and line["number"] == attempt.number]
    try:
        words = Path(f"/proc/{attempt.pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return words[0] != "Z" and words[19] == line["ticks"]

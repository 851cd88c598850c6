"""``make bench``: measures, prints tables, and writes the same as JSON to ``.test/bench``.

``python -m tests.bench compare …`` is the comparison with ZenML's own orchestrators alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests import servers
from tests.bench import translate
from tests.bench.compare.main import main as compare
from tests.bench.machine import machine
from tests.bench.rig import Rig, rig
from tests.bench.scenarios import Row, all_at_once, ready_queue

RESULTS = servers.ROOT / ".test" / "bench" / "bench.json"

GOALS: Mapping[str, Mapping[str, float]] = {
    "translation": {"translate_alike_10000_s": 1.0, "translate_distinct_10000_s": 1.0},
    "ready queue": {"ratio": 1.2},
    "all at once": {"added_peak_mb": 150},
}
"""The most that a figure should be."""


def on_servers(scenario: Callable[[Rig], Row]) -> Row:
    """Measure with servers of its own: a database that has seen a run isn't the one that the next began with."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, rig(Path(folder)) as ours:
        return scenario(ours)


def show(name: str, row: Mapping[str, Any]) -> None:
    """Print one part of the table."""
    print(f"\n{name}")
    for key, value in row.items():
        goal = GOALS.get(name, {}).get(key)
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        verdict = "" if goal is None else f"   goal: <= {goal:g}: {'met' if value <= goal else 'NOT MET'}"
        print(f"  {key:28}{text:>12}{verdict}", flush=True)


def main() -> None:
    """Measure everything, or what is named."""
    everything: dict[str, Callable[[], Mapping[str, Any]]] = {
        "translation": translate.measure,
        "ready queue": lambda: on_servers(
            lambda r: ready_queue(r, steps=1000, edge_count=1200, seconds=1.0, limit=16, workers=2, once=True)
        ),
        "ready queue, two reports": lambda: on_servers(
            lambda r: ready_queue(r, steps=1000, edge_count=1200, seconds=1.0, limit=16, workers=2)
        ),
        "ready queue, slower steps": lambda: on_servers(
            lambda r: ready_queue(r, steps=400, edge_count=480, seconds=4.0, limit=16, workers=2)
        ),
        "all at once": lambda: on_servers(lambda r: all_at_once(r, steps=1000, workers=2)),
    }
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("only", nargs="*", choices=[*everything, []], help="all of them if none is named")
    chosen = parser.parse_args().only or list(everything)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # ZenML shows its line for every request
    found: dict[str, Any] = {}
    for name in chosen:
        before = machine()
        found[name] = {**everything[name](), "machine": before}
        show(name, found[name])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(f"\n{RESULTS}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        compare(sys.argv[2:])
    else:
        main()

"""``python -m tests.bench compare``: measures what is missing, prints the table, writes JSON; ``--publish``: the page.

Measurements are kept in ``.test/compare.jsonl``: a run that was cut off goes on where it was, ``--fresh`` begins anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests import servers
from tests.bench.compare import report
from tests.bench.compare.record import Record, state_of_bridge
from tests.bench.compare.scenarios import COLD_STARTS, NATIVE_DYNAMIC, PIPELINE, SCENARIOS, WAYS, Cell, cells, core
from tests.bench.compare.yard import yard
from tests.bench.machine import machine

FOLDER = servers.ROOT / ".test"
RAW, FOUND = FOLDER / "compare.jsonl", FOLDER / "compare.json"
DOCS = servers.ROOT / "docs"
PAGE, DATA, PLOT = DOCS / "benchmarks.md", DOCS / "benchmarks.json", DOCS / "img" / "benchmarks.svg"
PLOT_PYTHON = servers.ROOT / ".venv-plot" / "bin" / "python"
QUICK = [Cell("diamond", way.name, 0.0 if way.local else 2.0) for way in WAYS]


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m tests.bench compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each way once, on the diamond")
    parser.add_argument("--core", action="store_true", help="what the goals need and the first scenario")
    parser.add_argument("--only", action="append", choices=[each.name for each in SCENARIOS], help="scenarios")
    parser.add_argument("--way", action="append", choices=[each.name for each in WAYS], help="ways")
    parser.add_argument("--cold-start", action="append", type=float, choices=COLD_STARTS, help="seconds")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each row (default: 3)")
    parser.add_argument("--within", type=float, help="minutes after which nothing more is begun")
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    parser.add_argument("--publish", action="store_true", help="write the table and the plot into docs/")
    return parser.parse_args(given)


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The rows to measure."""
    if options.quick:
        return QUICK
    return [
        cell
        for cell in (core() if options.core else cells())
        if cell.scenario in (options.only or [cell.scenario])
        and cell.way in (options.way or [cell.way])
        and cell.cold_start in (options.cold_start or [cell.cold_start])
    ]


def missing(record: Record, wanted: Sequence[Cell], repeats: int) -> list[Cell]:
    """What is still to be measured, in rounds, those of the core first: a run may be cut short."""
    have = {cell: len(several) for cell, several in record.read().items()}
    first = [cell for cell in wanted if cell in core()]
    rest = [cell for cell in wanted if cell not in first]
    return [cell for part in (first, rest) for turn in range(repeats) for cell in part if have.get(cell, 0) <= turn]


def measure(record: Record, wanted: Sequence[Cell], within: float | None) -> list[Cell]:
    """Measure and write down; return what failed."""
    begin = time.monotonic()
    failures: list[Cell] = []
    with tempfile.TemporaryDirectory(prefix="compare-") as folder, yard(Path(folder)) as ours:
        for way in (PIPELINE, NATIVE_DYNAMIC):
            # Thrown away: files that nobody has read since the machine was started, and code that isn't uploaded.
            ours.measure(Cell("diamond", way.name, 0.0))
        for number, cell in enumerate(wanted):
            if within is not None and time.monotonic() - begin > 60 * within:
                print(f"{len(wanted) - number} measurements are left for another time.")
                return failures
            before = machine()
            text = f"{cell.scenario:14}{cell.way:16}{cell.cold_start:4.0f} s cold"
            try:
                figures = ours.measure(cell)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                # Said, and not counted; the others are worth having all the same.
                print(f"{text}  FAILED: {error}", flush=True)
                failures.append(cell)
                continue
            record.add(cell, figures, before)
            print(f"{text}{figures['wall_s']:9.1f} s  load {before['load'][0]}", flush=True)
    return failures


def main(given: Sequence[str]) -> None:
    """Run it."""
    options = arguments(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped; what is measured is kept."))  # servers are ended too
    record = Record(RAW, state_of_bridge())
    if options.fresh:
        record.forget()
    wanted = chosen(options)
    left = missing(record, wanted, 1 if options.quick else options.repeats)
    failures = measure(record, left, options.within) if left else []
    measurements = record.read()
    found = report.medians(measurements)
    shown = {cell: figures for cell, figures in found.items() if cell in wanted}
    for cold_start in COLD_STARTS:
        print(f"\nCold start {cold_start:.0f} s\n\n{report.table(shown, cold_start)}")
    print(f"\n{report.start_up(found)}\n\n{report.goal_lines(found)}")
    machines = [each["machine"] for several in measurements.values() for each in several]
    everything = {"machines": machines, "rows": report.rows(found), "goals": report.goals(found)}
    FOUND.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"\n{FOUND}")
    if options.publish:
        PAGE.write_text(report.replaced(PAGE.read_text(), report.page(found, machines)))
        shutil.copy(FOUND, DATA)
        subprocess.run([PLOT_PYTHON, Path(__file__).parent / "plot.py", FOUND, PLOT], check=True)
        print(f"{PAGE}\n{DATA}\n{PLOT}")
    if failures:
        sys.exit(f"{len(failures)} measurements failed.")

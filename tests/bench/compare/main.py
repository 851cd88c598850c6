"""``python -m tests.bench compare``: measures what is missing, prints the table, leaves JSON, a plot, the page's text.

Measurements are kept, a line each, in ``compare.jsonl`` of the folder: a run that was cut off goes on where it was, and
one that begins with an empty folder goes on from those that were published. ``--list`` says what is missing, in the
order in which it will be measured, and how long that takes; ``--fresh`` begins anew; ``--publish`` writes the page.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import servers
from tests.bench.compare import estimate, report
from tests.bench.compare.record import Record, state_of_bridge
from tests.bench.compare.scenarios import (
    COLD_STARTS,
    NATIVE_DYNAMIC,
    PIPELINE,
    SCENARIOS,
    WAYS,
    Cell,
    cells,
    core,
    scenario,
    urgency,
)
from tests.bench.compare.yard import yard
from tests.bench.machine import machine, processor

FOLDER = servers.ROOT / ".test" / "bench"
DOCS = servers.ROOT / "docs"
PAGE, README, PLOT = DOCS / "benchmarks.md", servers.ROOT / "README.md", DOCS / "img" / "benchmarks.svg"
WARM_PAGE = DOCS / "warm.md"
DATA, MEASUREMENTS = DOCS / "benchmarks.json", DOCS / "benchmarks.jsonl"
PLOT_PYTHON = servers.ROOT / ".venv-plot" / "bin" / "python"
QUICK = [Cell("diamond", way.name, 0.0 if way.local else 2.0) for way in WAYS]


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.bench compare",
        description=__doc__,
        epilog=f"All of it, where nothing is measured yet, takes {_all_of_it():.1f} hours by what was published; "
        "`--list` says it of what is chosen, and what is left of it.",
    )
    parser.add_argument("--quick", action="store_true", help="each way once, on the diamond")
    parser.add_argument(
        "--core", action="store_true", help="what the goals need and the first pipeline, also run twice"
    )
    parser.add_argument("--only", action="append", choices=[each.name for each in SCENARIOS], help="scenarios")
    parser.add_argument("--way", action="append", choices=[each.name for each in WAYS], help="ways")
    parser.add_argument("--cold-start", action="append", type=float, choices=COLD_STARTS, help="seconds")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each row (default: 3)")
    parser.add_argument("--within", type=float, help="minutes after which nothing more is begun")
    parser.add_argument(
        "--list", action="store_true", help="say what is missing and how long it takes; measure nothing"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for what is measured (default: .test/bench)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    parser.add_argument("--publish", action="store_true", help="write the page, its figures and its plot into docs/")
    return parser.parse_args(given)


def _all_of_it() -> float:
    """Hours."""
    nothing = Record(Path("/nowhere"), "", "")
    return estimate.minutes(missing(nothing, cells(), 3), Record(MEASUREMENTS, "", "").read_all()) / 60


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
    """What is still to be measured: the most urgent first, those of one urgency in rounds."""
    have = {cell: len(several) for cell, several in record.read().items()}
    levels = sorted({urgency(cell) for cell in wanted})
    return [
        cell
        for level in levels
        for turn in range(repeats)
        for cell in _each_once([each for each in wanted if urgency(each) == level and have.get(each, 0) <= turn])
    ]


def _each_once(round_of: Sequence[Cell]) -> Iterator[Cell]:
    """Without first runs that are measured anyway, together with the second ones."""
    along = {Cell(scenario(each.scenario).after or "", each.way, each.cold_start) for each in round_of}
    return (each for each in round_of if each not in along)


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
            text = line(cell)
            try:
                found = ours.measure(cell)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                # Said, and not counted; the others are worth having all the same.
                print(f"{text}  FAILED: {error}", flush=True)
                failures.append(cell)
                continue
            for each, figures in found.items():
                record.add(each, figures, before)
            print(f"{text}{found[cell]['wall_s']:9.1f} s  load {before['load'][0]}", flush=True)
    return failures


def line(cell: Cell) -> str:
    """How a cell is named in a line of output."""
    return f"{cell.scenario:22}{cell.way:16}{cell.cold_start:4.0f} s cold"


def say_what_is_missing(record: Record, left: Sequence[Cell]) -> None:
    """Print it, in the order in which it will be measured, with the minutes until each of them is done."""
    measured, spent = record.read_all(), 0.0
    for cell in left:
        spent += estimate.seconds(cell, measured)
        print(f"{line(cell)}{spent / 60:9.0f} min")
    print(
        f"{len(left)} measurements are missing, {estimate.minutes(left, measured):.0f} minutes by estimate.", flush=True
    )


def main(given: Sequence[str]) -> None:
    """Run it."""
    options = arguments(given)
    folder: Path = options.folder
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped; what is measured is kept."))  # servers are ended too
    record = Record(folder / "compare.jsonl", state_of_bridge(), processor())
    if options.fresh:
        record.forget()
    else:
        record.begin_with(MEASUREMENTS)
    wanted = chosen(options)
    left = missing(record, wanted, 1 if options.quick else options.repeats)
    if options.list:
        say_what_is_missing(record, left)
        return
    failures = measure(record, left, options.within) if left else []
    measurements = record.read()
    found = report.medians(measurements)
    shown = {cell: figures for cell, figures in found.items() if cell in wanted}
    for cold_start in COLD_STARTS:
        print(f"\nCold start {cold_start:.0f} s\n\n{report.table(shown, cold_start)}")
    print(f"\n{report.start_up(found)}\n\n{report.goal_lines(found)}\n")
    for path in leave(record, folder):
        print(path)
    if options.publish:
        for path in publish(record, folder):
            print(path)
    if failures:
        sys.exit(f"{len(failures)} measurements failed.")


def leave(record: Record, folder: Path) -> list[Path]:
    """Write what is measured into its folder: as JSON, as a plot, as the page will say it. Returns the files."""
    measurements = record.read()
    found = report.medians(measurements)
    data, plot, text = (folder / name for name in ("compare.json", "compare.svg", "compare.md"))
    machines = [each["machine"] for several in measurements.values() for each in several]
    everything = {"machines": machines, "rows": report.rows(found), "goals": report.goals(found)}
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(everything, indent=1) + "\n")
    text.write_text(report.page(measurements) + "\n")
    if not PLOT_PYTHON.exists():
        raise RuntimeError("There is no .venv-plot: `make .venv-plot/.done` makes it.")
    subprocess.run([PLOT_PYTHON, Path(__file__).parent / "plot.py", data, plot], check=True)
    return [record.path, data, plot, text]


def publish(record: Record, folder: Path) -> list[Path]:
    """Write the page, what the readme and the page on warm sandboxes say, and what they are made of.

    Returns the files.
    """
    lacking = [cell for cell in core() if cell not in record.read()]
    if lacking:
        sys.exit("Not published: what the goals need isn't measured on this bridge:\n" + "\n".join(map(line, lacking)))
    PAGE.write_text(report.replaced(PAGE.read_text(), (folder / "compare.md").read_text()))
    found = report.medians(record.read())
    README.write_text(report.replaced(README.read_text(), report.sentence(found)))
    WARM_PAGE.write_text(report.replaced(WARM_PAGE.read_text(), report.chain(found)))
    shutil.copy(folder / "compare.json", DATA)
    shutil.copy(folder / "compare.svg", PLOT)
    record.publish(MEASUREMENTS)
    return [PAGE, README, WARM_PAGE, DATA, PLOT, MEASUREMENTS]

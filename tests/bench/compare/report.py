"""What the measurements say: medians, ratios, goals; as data, as a table, as the page in ``docs/``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tests.bench.compare.scenarios import (
    COLD,
    COLD_STARTS,
    GOALS,
    LOCAL,
    NATIVE,
    NATIVE_DYNAMIC,
    PIPELINE,
    SCENARIOS,
    WARM,
    WAYS,
    ZENML_LOCAL,
    Cell,
    Goal,
    Way,
    cells,
    way,
)
from tests.bench.compare.startup import PARTS

Medians = Mapping[str, float]
NATURALLY = ("wall_s", "sandbox_s", "gpu_s", "control_calls", "client_cpu_s", "client_peak_mb")
"""Figures of which ratios are given: ZenML's own orchestrator over ours."""
BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"


def medians(measurements: Mapping[Cell, Sequence[Mapping[str, Any]]]) -> dict[Cell, dict[str, float]]:
    """The median of each figure of each cell, with the number of measurements as ``n``."""
    found = {}
    for cell, several in measurements.items():
        figures = [each["figures"] for each in several]
        named = [name for name, value in figures[-1].items() if isinstance(value, (int, float))]
        found[cell] = {name: median(each[name] for each in figures if name in each) for name in named}
        found[cell]["n"] = len(several)
    return found


def rows(found: Mapping[Cell, Medians]) -> list[dict[str, Any]]:
    """Each cell's medians, with the ratios of ZenML's own orchestrator to it."""
    return [{**asdict(cell), **figures, "ratios": _ratios(found, cell, figures)} for cell, figures in _in_order(found)]


def _in_order(found: Mapping[Cell, Medians]) -> Iterator[tuple[Cell, Medians]]:
    for scenario in SCENARIOS:
        for cold_start in COLD_STARTS:
            for how in WAYS:
                cell = Cell(scenario.name, how.name, cold_start)
                if cell in found:
                    yield cell, found[cell]


def _ratios(found: Mapping[Cell, Medians], cell: Cell, figures: Medians) -> dict[str, float]:
    peer = ZENML_LOCAL if way(cell.way).local else NATIVE
    against = found.get(Cell(cell.scenario, peer.name, cell.cold_start))
    if against is None or peer.name == cell.way:
        return {}
    return {name: against[name] / figures[name] for name in NATURALLY if figures.get(name) and against.get(name)}


def goals(found: Mapping[Cell, Medians]) -> list[dict[str, Any]]:
    """What each goal came to, and whether it is met; those that weren't measured are left out."""
    verdicts = []
    for goal in GOALS:
        value = _value(found, goal)
        if value is not None:
            met = value >= goal.least if goal.least is not None else value <= (goal.most or 0)
            verdicts.append({"goal": str(goal), "value": value, "met": met})
    return verdicts


def _value(found: Mapping[Cell, Medians], goal: Goal) -> float | None:
    def of(way: Way) -> float | None:
        cold_start = 0.0 if way.local else goal.cold_start
        return found.get(Cell(goal.scenario, way.name, cold_start), {}).get(goal.figure)

    ours = of(goal.ours)
    if goal.against is None or ours is None:
        return ours
    theirs = of(goal.against)
    return None if theirs is None else theirs / ours


COLUMNS = (
    ("wall, s", "wall_s", "{:.1f}"),
    ("sandboxes", "sandboxes", "{:.0f}"),
    ("sandbox-s", "sandbox_s", "{:.0f}"),
    ("GPU-s", "gpu_s", "{:.0f}"),
    ("calls", "control_calls", "{:.0f}"),
    ("client CPU, s", "client_cpu_s", "{:.1f}"),
    ("client MB", "client_peak_mb", "{:.0f}"),
)
_WITH_RATIO = ("wall_s", "sandbox_s", "gpu_s")


def table(found: Mapping[Cell, Medians], cold_start: float) -> str:
    """The rows of one cold start, as Markdown. In brackets: ZenML's own orchestrator over this row."""
    head = ["", *(title for title, _, _ in COLUMNS), "n"]
    lines = [head, ["---"] * len(head)]
    last = ""
    for row in rows(found):
        if row["cold_start"] != cold_start or "ours_s" in row:
            continue
        if row["scenario"] != last:
            last = row["scenario"]
            lines.append([f"**{last}**", *[""] * (len(head) - 1)])
        lines.append([row["way"], *(_cell(row, name, form) for _, name, form in COLUMNS), str(row["n"])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(row: Mapping[str, Any], name: str, form: str) -> str:
    text = form.format(row[name])
    ratio = row["ratios"].get(name)
    return f"{text} ({ratio:.1f})" if ratio is not None and name in _WITH_RATIO else text


def start_up(found: Mapping[Cell, Medians]) -> str:
    """What happens before the first sandbox, as Markdown."""
    ours, native = (found.get(Cell("start-up", way.name, 0.0)) for way in (PIPELINE, NATIVE_DYNAMIC))
    if ours is None or native is None:
        return ""
    lines = ["| seconds, from the call | ours | ZenML's own |", "|---|---|---|"]
    for name, title in PARTS.items():
        lines.append(f"| {title} | {ours[name]:.2f} | {native[name]:.2f} |")
    lines.append(f"| the orchestrator's parts together | {ours['ours_s']:.2f} | {native['ours_s']:.2f} |")
    first = [f"{each['first_sandbox_s']:.2f}" for each in (ours, native)]
    lines.append(f"| until the first sandbox is asked for | {first[0]} | {first[1]} |")
    return "\n".join(lines)


def goal_lines(found: Mapping[Cell, Medians]) -> str:
    """The goals, as Markdown."""
    lines = ["| goal | measured | |", "|---|---|---|"]
    for each in goals(found):
        lines.append(f"| {each['goal']} | {each['value']:.2f} | {'met' if each['met'] else '**missed**'} |")
    return "\n".join(lines)


Measurements = Mapping[Cell, Sequence[Mapping[str, Any]]]
WANTED = 3
"""Measurements that a row should have."""


def page(measurements: Measurements) -> str:
    """What the tool writes into the page: the machine, what is missing, the goals, the tables."""
    found = medians(measurements)
    return "\n\n".join(
        [
            machine_line([each["machine"] for several in measurements.values() for each in several]),
            when_line(measurements),
            goal_lines(found),
            "![Wall time and sandbox-seconds](img/benchmarks.svg)",
            *(f"### Cold start {cold_start:.0f} s\n\n{table(found, cold_start)}" for cold_start in COLD_STARTS),
            f"### Start-up\n\n{start_up(found)}",
            *missing_lines(measurements),
        ]
    )


def machine_line(machines: Sequence[Mapping[str, Any]]) -> str:
    """Where, with the load at the beginning of the measurements, and what was up before."""
    last = max(machines, key=lambda each: str(each["when"]))
    loads = sorted(each["load"][0] for each in machines)
    return (
        f"{last['cpu']}, {last['cores']} cores, {last['memory_gb']} GB; Python {last['python']}, "
        f"{', '.join(f'{name} {version}' for name, version in last['versions'].items())}. Prefect's API and ZenML's "
        f"server were up before each call. Load when a measurement began: {loads[0]} to {loads[-1]}, median "
        f"{median(loads)}."
    )


def when_line(measurements: Measurements) -> str:
    """When each side was measured: ZenML's own isn't measured anew for each change of ours."""
    said = []
    for side, ours in (("ours", True), ("ZenML's own", False)):
        when = sorted(
            each["machine"]["when"]
            for cell, several in measurements.items()
            if way(cell.way).ours == ours
            for each in several
        )
        if when:
            said.append(f"{side} from {_minute(when[0])} to {_minute(when[-1])}")
    return f"Measured (UTC): {'; '.join(said)}. Figures are medians of as many measurements as the last column says."


def _minute(when: str) -> str:
    return when[:16].replace("T", " ")


def missing_lines(measurements: Measurements) -> list[str]:
    """Which rows have fewer measurements than they should, and which have none, as Markdown."""
    have = {cell: len(measurements.get(cell, ())) for cell in cells()}
    few = [cell for cell, count in have.items() if 0 < count < WANTED]
    none = [cell for cell, count in have.items() if not count]
    lines = [f"- {title}: {_named(those)}." for title, those in (("fewer", few), ("none", none)) if those]
    if not lines:
        return []
    return ["### What has fewer than three measurements", "\n".join(lines)]


def _named(those: Sequence[Cell]) -> str:
    by_scenario: dict[str, list[str]] = {}
    for cell in those:
        at = "" if way(cell.way).local else f" ({cell.cold_start:.0f} s)"
        by_scenario.setdefault(cell.scenario, []).append(f"{cell.way}{at}")
    return "; ".join(f"{name}: {', '.join(ways)}" for name, ways in by_scenario.items())


def sentence(found: Mapping[Cell, Medians]) -> str:
    """What the readme says of it. Raises ``KeyError`` where a row that it needs isn't measured."""
    warm, native, sharing = (found[Cell("chain 20", way.name, 2.0)] for way in (WARM, NATIVE, PIPELINE))
    wide, native_wide = (found[Cell("fan-out 50", way.name, 2.0)] for way in (WARM, NATIVE))
    cold = found.get(Cell("chain 20", COLD.name, 2.0))
    alone = f", and {cold['step_s']:.0f} s in a cold sandbox of its own" if cold else ""
    said = [
        "in `per_step` mode a cached step starts no sandbox, and the whole pipeline can share one "
        f'(`execution_mode="pipeline"`, the default), where a step of a chain costs {sharing["step_s"]:.1f} s{alone};',
        f"a chain of 20 small steps takes {warm['wall_s']:.0f} s and {warm['sandbox_s']:.0f} sandbox-seconds instead "
        f"of {native['wall_s']:.0f} s and {native['sandbox_s']:.0f}, and 50 steps side by side take "
        f"{wide['wall_s']:.0f} s instead of {native_wide['wall_s']:.0f} s (cold starts of 2 s, "
        "[measured](docs/benchmarks.md) on one machine; ZenML's *dynamic* pipelines, whose steps share one process, "
        "are quicker than both where steps do next to nothing);",
    ]
    return "\n".join(textwrap.fill(f"- {each}", 118, subsequent_indent="  ") for each in said)


def chain(found: Mapping[Cell, Medians]) -> str:
    """What the page on warm sandboxes says of a chain of steps, as Markdown."""
    lines = ["| | a step, s | sandboxes | sandbox-s | in all, s |", "|---|---|---|---|---|"]
    for name, at in (
        ("Modal, warm", Cell("chain 20", WARM.name, 2.0)),
        ("Modal, `warm=False`", Cell("chain 20", COLD.name, 2.0)),
        ("local processes, warm", Cell("chain 20", LOCAL.name, 0.0)),
    ):
        if (row := found.get(at)) is not None:
            sandboxes = f"{row['sandboxes']:.0f} | {row['sandbox_s']:.0f}" if row["sandboxes"] else "– | –"
            lines.append(f"| {name} | {row['step_s']:.2f} | {sandboxes} | {row['wall_s']:.0f} |")
    return "\n".join(lines)


def replaced(page: str, text: str) -> str:
    """The page with what stands between the two marks replaced. Raises ``ValueError`` where they are missing."""
    before, middle, rest = page.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not middle or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    indent = old.rpartition("\n")[2]
    return f"{before}{BEGIN}\n{text.strip()}\n{indent}{END}{after}"

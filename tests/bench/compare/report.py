"""What the measurements say: medians, ratios, goals; as data, as a table, as the page in ``docs/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from tests.bench.compare.scenarios import (
    COLD_STARTS,
    GOALS,
    NATIVE,
    NATIVE_DYNAMIC,
    PIPELINE,
    SCENARIOS,
    WAYS,
    ZENML_LOCAL,
    Cell,
    Goal,
    Way,
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
            for way in WAYS:
                cell = Cell(scenario.name, way.name, cold_start)
                if cell in found:
                    yield cell, found[cell]


def _ratios(found: Mapping[Cell, Medians], cell: Cell, figures: Medians) -> dict[str, float]:
    peer = ZENML_LOCAL if next(way for way in WAYS if way.name == cell.way).local else NATIVE
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


def page(found: Mapping[Cell, Medians], machines: Sequence[Mapping[str, Any]]) -> str:
    """What the tool writes into the page: the machine, the goals, the tables."""
    return "\n\n".join(
        [
            machine_line(machines),
            goal_lines(found),
            "![Wall time and sandbox-seconds](img/benchmarks.svg)",
            *(f"### Cold start {cold_start:.0f} s\n\n{table(found, cold_start)}" for cold_start in COLD_STARTS),
            f"### Start-up\n\n{start_up(found)}",
        ]
    )


def machine_line(machines: Sequence[Mapping[str, Any]]) -> str:
    """Where and when, with the load at the beginning of the measurements."""
    last = max(machines, key=lambda each: str(each["when"]))
    loads = sorted(each["load"][0] for each in machines)
    return (
        f"{last['when'][:10]}, {last['cpu']}, {last['cores']} cores, {last['memory_gb']} GB; Python {last['python']}, "
        f"{', '.join(f'{name} {version}' for name, version in last['versions'].items())}. Load when a measurement "
        f"began: {loads[0]} to {loads[-1]}, median {median(loads)}."
    )


def replaced(page: str, text: str) -> str:
    """The page with what stands between the two marks replaced. Raises ``ValueError`` where they are missing."""
    before, middle, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not middle or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"

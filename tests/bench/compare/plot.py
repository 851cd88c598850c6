"""Draws the comparison: ``python plot.py compare.json OUT.svg``, in an environment that has matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "compare"  # the same figures, the same file
from matplotlib import pyplot  # noqa: E402

COLD_START = 2.0
WAYS = {
    "native static": "#8a8a8a",
    "native dynamic": "#c4c4c4",
    "per_step cold": "#9ec9e8",
    "per_step warm": "#1f77b4",
    "pipeline": "#0b3d66",
}
PANELS = {"wall_s": "seconds from call to return", "sandbox_s": "sandbox-seconds"}


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Bars for each scenario and way, on a logarithmic scale, with the figure beside each."""
    rows = [row for row in rows if row["cold_start"] == COLD_START and row["way"] in WAYS]
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))[::-1]
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 1 + 1.1 * len(scenarios)), sharey=True)
    for panel, (name, title) in zip(axes, PANELS.items(), strict=True):
        for number, (way, colour) in enumerate(WAYS.items()):
            at = {row["scenario"]: row[name] for row in rows if row["way"] == way}
            places = [scenarios.index(scenario) + 0.32 - 0.16 * number for scenario in at]
            bars = panel.barh(places, list(at.values()), 0.15, color=colour, label=way)
            panel.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        if rows:
            panel.set_xscale("log")
        panel.set_title(title, fontsize=10)
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(scenarios)), scenarios)
    axes[-1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text())["rows"], Path(sys.argv[2]))

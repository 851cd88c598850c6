"""The comparison with ZenML's own orchestrators: what is left to measure, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.bench.compare import report
from tests.bench.compare.main import arguments, chosen, missing
from tests.bench.compare.record import Record
from tests.bench.compare.scenarios import LOCAL, NATIVE, NATIVE_DYNAMIC, PIPELINE, WARM, ZENML_LOCAL, Cell, cells, core
from tests.bench.compare.startup import PARTS, breakdown
from tests.bench.compare.yard import NATIVE_PYTHON, yard

OURS, THEIRS = Cell("chain 20", WARM.name, 2.0), Cell("chain 20", NATIVE.name, 2.0)
MACHINE = {"when": "2026-11-24T12:00:00", "load": [1.0, 1.0, 1.0]}


def figures(wall: float, sandbox: float = 0.0) -> dict[str, Any]:
    return {
        **dict.fromkeys(("sandboxes", "gpu_s", "control_calls", "client_cpu_s", "client_peak_mb", "step_s"), 1.0),
        "wall_s": wall,
        "sandbox_s": sandbox,
    }


def measured(**walls: list[float]) -> Mapping[Cell, list[dict[str, Any]]]:
    cells = {"ours": OURS, "theirs": THEIRS}
    return {cells[name]: [{"figures": figures(wall, wall * 2)} for wall in many] for name, many in walls.items()}


def test_medians_ratios_and_goals() -> None:
    found = report.medians(measured(ours=[10, 30, 20], theirs=[100, 120, 900]))
    assert (found[OURS]["wall_s"], found[OURS]["n"]) == (20, 3)
    ours, theirs = report.rows(found)
    assert ours["ratios"]["wall_s"] == 6
    assert "gpu_s" in ours["ratios"]
    assert theirs["ratios"] == {}
    verdicts = {each["goal"]: each["met"] for each in report.goals(found)}
    assert verdicts == {
        "chain 20: wall_s, native static ÷ per_step warm ≥ 6.5": False,
        "chain 20: sandbox_s, native static ÷ per_step warm ≥ 12": False,
    }
    assert all(each["met"] for each in report.goals(report.medians(measured(ours=[10], theirs=[130]))))


def test_local_rows_are_compared_with_zenmls_local_orchestrator() -> None:
    local, zenml = Cell("diamond", LOCAL.name, 0.0), Cell("diamond", ZENML_LOCAL.name, 0.0)
    found = report.medians({local: [{"figures": figures(8)}], zenml: [{"figures": figures(4)}]})
    assert [row["ratios"].get("wall_s") for row in report.rows(found)] == [0.5, None]


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    record = Record(tmp_path / "some.jsonl", "now")
    wanted = [OURS, THEIRS]
    assert missing(record, wanted, 2) == [OURS, THEIRS, OURS, THEIRS]
    record.add(OURS, figures(1), MACHINE)
    assert missing(record, wanted, 2) == [THEIRS, OURS, THEIRS]
    record.add(THEIRS, figures(1), MACHINE)
    # What ZenML's own took has nothing to do with a change in the bridge.
    assert missing(Record(record.path, "later"), wanted, 2) == [OURS, OURS, THEIRS]
    record.forget()
    assert missing(record, wanted, 1) == wanted


def test_the_core_comes_first() -> None:
    wanted = chosen(arguments([]))
    assert wanted == cells()
    order = missing(Record(Path("/nowhere"), ""), wanted, 3)
    assert set(order[: 3 * len(core())]) == set(core())
    assert len(order) == 3 * len(wanted)
    assert chosen(arguments(["--core", "--only", "training", "--way", "pipeline"])) == [
        Cell("training", PIPELINE.name, 2.0)
    ]


def test_start_up_is_taken_apart() -> None:
    stacks = [
        ["call.py:main", "zenml/compiler.py:compile", "x.py:f"],
        ["call.py:main", "zenml/zen_stores/rest_zen_store.py:get", "x.py:f"],
        [
            "call.py:main",
            "zenml/a.py:b",
            "/bridge/orchestrator.py:submit_pipeline",
            "futures/_base.py:result",
            "t.py:w",
        ],
        ["call.py:main", "zenml/a.py:b", "/bridge/run.py:open_run", "zen_stores/rest_zen_store.py:get", "t.py:w"],
        ["call.py:main", "/bridge/flow.py:on_own_loop", "futures/_base.py:result", "t.py:w"],
    ]
    at = [[10.0 + number, {"MainThread": number - 1, "other": 0}] for number in range(1, 6)]
    found = breakdown({"stacks": stacks, "at": at}, 10.0, 14.5)
    assert found == {
        **dict.fromkeys(PARTS, 0.0),
        "zenml_rest": 1.0,
        "zenml_requests": 1.0,
        "ours_imports": 1.0,
        "ours_requests": 1.0,
        "ours_modal": 0.5,
        "ours_s": 2.5,
    }


def test_the_page_keeps_what_people_wrote() -> None:
    page = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    assert report.replaced(page, "new") == f"above\n{report.BEGIN}\nnew\n{report.END}\nbelow\n"
    with pytest.raises(ValueError, match="the page has no"):
        report.replaced("nothing", "new")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not NATIVE_PYTHON.exists(), reason="`make .venv-native/.done`")
def test_both_run_the_same_pipeline(tmp_path: Path) -> None:
    with yard(tmp_path) as ours:
        found = {way.name: ours.measure(Cell("start-up", way.name, 0.0)) for way in (PIPELINE, NATIVE_DYNAMIC)}
    assert {name: row["sandboxes"] for name, row in found.items()} == {PIPELINE.name: 1, NATIVE_DYNAMIC.name: 1}
    for row in found.values():
        assert 0 < row["first_sandbox_s"] < row["wall_s"]
        assert sum(row[name] for name in PARTS) == pytest.approx(row["first_sandbox_s"], abs=0.1)

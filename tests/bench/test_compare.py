"""The comparison with ZenML's own orchestrators: what is left to measure, and what is made of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.bench.compare import estimate, report
from tests.bench.compare.main import (
    DATA,
    MEASUREMENTS,
    PAGE,
    PLOT_PYTHON,
    README,
    WARM_PAGE,
    arguments,
    chosen,
    main,
    missing,
    publish,
)
from tests.bench.compare.record import Record, state_of_bridge
from tests.bench.compare.scenarios import (
    COLD,
    LOCAL,
    NATIVE,
    NATIVE_DYNAMIC,
    ON_MODAL,
    PIPELINE,
    SCENARIOS,
    WARM,
    ZENML_LOCAL,
    Cell,
    Scenario,
    Way,
    cells,
    core,
    urgency,
)
from tests.bench.compare.startup import PARTS, breakdown
from tests.bench.compare.yard import NATIVE_PYTHON, yard
from tests.bench.machine import processor

OURS, THEIRS = Cell("chain 20", WARM.name, 2.0), Cell("chain 20", NATIVE.name, 2.0)
MACHINE = {
    "when": "2026-11-24T12:00:00",
    "load": [1.0, 1.0, 1.0],
    "cpu": "some",
    "cores": 2,
    "memory_gb": 24,
    "python": "3.11.7",
    "versions": {"zenml": "0.98.0"},
}


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
    record = Record(tmp_path / "some.jsonl", "now", "some")
    wanted = [OURS, THEIRS]
    assert missing(record, wanted, 2) == [OURS, THEIRS, OURS, THEIRS]
    record.add(OURS, figures(1), MACHINE)
    assert missing(record, wanted, 2) == [THEIRS, OURS, THEIRS]
    record.add(THEIRS, figures(1), MACHINE)
    # What ZenML's own took has nothing to do with a change in the bridge.
    assert missing(Record(record.path, "later", "some"), wanted, 2) == [OURS, OURS, THEIRS]
    # What another processor took is no measure of either.
    assert missing(Record(record.path, "now", "another"), wanted, 1) == wanted
    record.forget()
    assert missing(record, wanted, 1) == wanted


def test_what_matters_comes_first(tmp_path: Path) -> None:
    wanted = chosen(arguments([]))
    assert wanted == cells()
    nothing = Record(tmp_path / "none.jsonl", "", "some")
    order = missing(nothing, wanted, 3)
    # A first run of the training pipeline is measured with its second one.
    along = {Cell("training", way.name, 2.0) for way in ON_MODAL}
    assert set(order[: 3 * len(set(core()) - along)]) == set(core()) - along
    assert order[: len(ON_MODAL)] == [Cell("training, second run", way.name, 2.0) for way in ON_MODAL]
    assert Counter(order) == {cell: 3 for cell in wanted if cell not in along}
    assert [urgency(cell) for cell in order] == sorted(urgency(cell) for cell in order)
    later = [("chain 20", 2.0), ("chain 20", 0.0), ("fan-out 50", 0.0)]
    assert [urgency(Cell(name, COLD.name, cold_start)) for name, cold_start in later] == [1, 2, 3]
    assert chosen(arguments(["--core", "--only", "training", "--way", "pipeline"])) == [
        Cell("training", PIPELINE.name, 2.0)
    ]


def test_a_first_run_is_measured_alone_where_the_second_one_isn_t_wanted_or_is_known(tmp_path: Path) -> None:
    first, second = (Cell(name, WARM.name, 2.0) for name in ("training", "training, second run"))
    record = Record(tmp_path / "some.jsonl", "now", "some")
    assert missing(record, [first], 1) == [first]
    record.add(second, figures(1), MACHINE)
    assert missing(record, [first, second], 2) == [first, second]


def test_the_estimate_is_made_of_earlier_measurements() -> None:
    def took(wall: float) -> list[dict[str, Any]]:
        return [{"figures": figures(wall)}]

    first, second = (Cell(name, WARM.name, 2.0) for name in ("training", "training, second run"))
    measured = {first: took(40), OURS: took(20), Cell("diamond", WARM.name, 0.0): took(9)}
    around = estimate.AROUND_SECONDS
    assert estimate.seconds(first, measured) == 40 + around
    assert estimate.seconds(second, measured) == 40 + 40 + around
    assert estimate.seconds(second, {**measured, second: took(30)}) == 40 + 30 + around
    assert estimate.seconds(Cell("diamond", WARM.name, 2.0), measured) == 9 + around  # as with the other cold start
    assert estimate.seconds(Cell("fan-out 50", WARM.name, 2.0), measured) == 20 * 51 / 20 / 2 + around
    assert estimate.minutes([first, first], measured) == 2 * (40 + around) / 60


def test_a_fresh_clone_goes_on_from_what_is_published_without_what_counts_no_more(tmp_path: Path) -> None:
    published = tmp_path / "published.jsonl"
    before = Record(tmp_path / "before.jsonl", "before", "some")
    for cell in (THEIRS, OURS, THEIRS):
        before.add(cell, figures(1), MACHINE)
    before.publish(published)
    after = Record(tmp_path / "new" / "after.jsonl", "after", "some")
    after.begin_with(published)
    assert {cell: len(rows) for cell, rows in after.read().items()} == {THEIRS: 2}
    assert {cell: len(rows) for cell, rows in after.read_all().items()} == {OURS: 1, THEIRS: 2}
    after.add(OURS, figures(2), MACHINE)
    after.begin_with(published)  # what is there stays
    assert len(after.read()[OURS]) == 1
    after.publish(published)
    assert [json.loads(line)["cell"]["way"] for line in published.read_text().splitlines()] == [
        each.way for each in sorted([OURS, THEIRS, THEIRS], key=cells().index)
    ]


@pytest.mark.skipif(not PLOT_PYTHON.exists(), reason="`make .venv-plot/.done`")
def test_json_a_plot_and_the_page_s_text_are_left_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(MEASUREMENTS, tmp_path / "compare.jsonl")
    record = Record(tmp_path / "compare.jsonl", state_of_bridge(), processor())
    cell = Cell("diamond", NATIVE.name, 2.0)
    record.add(cell, figures(12.5), {**MACHINE, "cpu": processor()})
    before = PAGE.read_text()
    measured_already = ["--only", cell.scenario, "--way", cell.way, "--cold-start", "2", "--repeats", "1"]
    main(["--folder", str(tmp_path), *measured_already])
    said = capsys.readouterr().out
    left = [tmp_path / name for name in ("compare.jsonl", "compare.json", "compare.svg", "compare.md")]
    assert [str(path) for path in left] == said.splitlines()[-4:]
    assert cell.scenario in left[2].read_text()  # text stays text in the plot
    assert f"| {cell.way} |" in left[3].read_text()
    assert any(row["scenario"] == cell.scenario for row in json.loads(left[1].read_text())["rows"])
    assert PAGE.read_text() == before


def test_a_page_without_ours_is_not_published(tmp_path: Path) -> None:
    record = Record(tmp_path / "some.jsonl", "now", "some")
    record.add(THEIRS, figures(1), MACHINE)
    before = PAGE.read_text()
    with pytest.raises(SystemExit, match=r"chain 20 +per_step warm"):
        publish(record, tmp_path)
    assert PAGE.read_text() == before


@pytest.mark.parametrize("document", [PAGE, README, WARM_PAGE], ids=lambda path: path.name)
def test_what_is_published_is_what_was_measured(document: Path) -> None:
    """No figure of the comparison is written by hand: the next measurement would make it wrong."""
    measurements = Record(MEASUREMENTS, "", "").read_all()
    found = report.medians(measurements)
    said = {PAGE: report.page(measurements), README: report.sentence(found), WARM_PAGE: report.chain(found)}[document]
    text = document.read_text()
    assert report.replaced(text, said) == text
    assert json.loads(DATA.read_text())["rows"] == report.rows(found)


def test_what_lacks_measurements_is_said() -> None:
    once = [{"figures": figures(1), "machine": MACHINE}]
    few, none = report.missing_lines(dict.fromkeys(cells()[1:], once))[1].splitlines()
    assert few.startswith("- fewer: ")
    assert none == f"- none: training: {cells()[0].way} (2 s)."
    assert report.missing_lines(dict.fromkeys(cells(), once * 3)) == []


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
        [
            "call.py:main",
            "zenml/a.py:b",
            "/bridge/flow_run/open_run.py:open_run",
            "zen_stores/rest_zen_store.py:get",
            "t.py:w",
        ],
        ["call.py:main", "/bridge/own_loop.py:on_own_loop", "futures/_base.py:result", "t.py:w"],
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
    indented = f"- above\n  {report.BEGIN}\n- old\n  {report.END}\n- below\n"
    assert report.replaced(indented, "- new") == f"- above\n  {report.BEGIN}\n- new\n  {report.END}\n- below\n"
    page = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    assert report.replaced(page, "new") == f"above\n{report.BEGIN}\nnew\n{report.END}\nbelow\n"
    with pytest.raises(ValueError, match="the page has no"):
        report.replaced("nothing", "new")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not NATIVE_PYTHON.exists(), reason="`make .venv-native/.done`")
def test_both_run_the_same_pipeline(tmp_path: Path) -> None:
    with yard(tmp_path) as ours:
        asked = [Cell("start-up", way.name, 0.0) for way in (PIPELINE, NATIVE_DYNAMIC)]
        found = {cell.way: ours.measure(cell)[cell] for cell in asked}
    assert {name: row["sandboxes"] for name, row in found.items()} == {PIPELINE.name: 1, NATIVE_DYNAMIC.name: 1}
    for row in found.values():
        assert 0 < row["first_sandbox_s"] < row["wall_s"]
        assert sum(row[name] for name in PARTS) == pytest.approx(row["first_sandbox_s"], abs=0.1)


TWICE = Scenario("diamond, second run", "diamond", 4, after="diamond")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not NATIVE_PYTHON.exists(), reason="`make .venv-native/.done`")
@pytest.mark.parametrize("way", [WARM, NATIVE_DYNAMIC], ids=lambda way: way.name)
def test_a_second_run_has_figures_of_its_own(way: Way, tmp_path: Path) -> None:
    """Also: ours keeps no sandbox from run to run, as `docs/warm.md` says."""
    first, second = (Cell(name, way.name, 0.0) for name in ("diamond", TWICE.name))
    with yard(tmp_path, (*SCENARIOS, TWICE)) as ours:
        found = ours.measure(second)
        boxes = ours.modal.sandboxes()
        alive = ours.modal.stats().alive
    assert set(found) == {first, second}
    assert [row["sandboxes"] for row in found.values()] == ([2, 2] if way == WARM else [1, 1])
    assert not alive
    assert sum(row["sandboxes"] for row in found.values()) == len(boxes)
    assert sum(row["sandbox_s"] for row in found.values()) == pytest.approx(sum(box.seconds for box in boxes))
    # What was imported once isn't again.
    assert found[second]["client_cpu_s"] < found[first]["client_cpu_s"]

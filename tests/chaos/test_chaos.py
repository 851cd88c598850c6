"""A short series of random runs under random faults; that bugs planted into the package are found."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers
from tests.chaos import planted_bugs
from tests.chaos.case import FLOW, KINDS, LOST, make_case
from tests.chaos.report import ENOUGH, Report
from tests.chaos.seen import Seen, Strike

HERE = Path(__file__).parent


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "kinds"),
    [
        (1752, {FLOW[1], "prefect away"}),
        pytest.param(39, {FLOW[1]}, marks=pytest.mark.slow),
        pytest.param(40, {"prefect away"}, marks=pytest.mark.slow),
    ],
    ids=["both", "a flow that dies while a step ends", "Prefect away"],
)
def test_a_small_run(tmp_path: Path, seed: int, kinds: set[str]) -> None:
    """Two in `pipeline` mode, and one in `per_step`."""
    assert struck_in(tmp_path, "--small", "--seed", str(seed)) == kinds


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "kinds"), [(14, {"stop"}), (16, {"evict function"})])
def test_a_dynamic_pipeline(tmp_path: Path, seed: int, kinds: set[str]) -> None:
    assert struck_in(tmp_path, "--dynamic", "--seed", str(seed)) == kinds


def struck_in(tmp_path: Path, *arguments: str) -> set[str]:
    """Run a case in which nothing is to be wrong; return what struck a running step."""
    command = [sys.executable, "-m", "tests.chaos", *arguments, "--count", "1"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "chaos"), "--report", str(tmp_path / "report.json")],
        cwd=servers.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    struck = json.loads((tmp_path / "report.json").read_text())["struck"]
    return {kind for kind, times in struck.items() if times}


def test_the_model_knows_nothing_of_the_package() -> None:
    """Nor does what it imports."""
    for module in ("model", "dynamic_model", "case", "seen"):
        tree = ast.parse((HERE / f"{module}.py").read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        strange = [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]
        assert set(strange) <= {"tests.chaos.case", "tests.chaos.model", "tests.chaos.seen"}, module


def test_a_seed_makes_the_same_case_again() -> None:
    made = [sys.executable, "-c", "from tests.chaos.case import make_case; print(make_case(7).as_json())"]
    again = subprocess.run(made, cwd=servers.ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, stdout=subprocess.PIPE)
    assert again.stdout.decode().strip() == make_case(7).as_json()


@pytest.mark.parametrize("name", planted_bugs.NAMES)
def test_a_planted_bug_can_be_planted(name: str, tmp_path: Path) -> None:
    """The patches keep up with the package."""
    planted_bugs.plant(name, tmp_path)
    module = next(
        line[6:] for line in (HERE / "planted" / f"{name}.patch").read_text().splitlines() if line[:3] == "+++"
    )
    assert (tmp_path / module).read_text() != (servers.ROOT / module).read_text()
    ast.parse((tmp_path / module).read_text())


@pytest.mark.parametrize("name", planted_bugs.NAMES)
def test_a_patch_names_what_the_model_says_of_it(name: str) -> None:
    """In its words, and the driver's for a run that hung: of each there is a piece of text that could be matched."""
    sentences = planted_bugs.sentences(name)
    words = [word for words in re.split(r"\\[a-z][+*]?|\.\*|\|", sentences.pattern) if (word := words.strip())]
    said = (HERE / "model.py").read_text() + (HERE / "driver.py").read_text()
    assert words
    assert not [word for word in words if word not in said]


WRONG = "  WRONG s1 succeeded 2 times"


@pytest.mark.parametrize(
    ("bugged", "sound", "found"),
    [
        ({1: "", 2: WRONG}, {2: ""}, 2),
        ({1: "  WRONG hung: for 300 s", 2: WRONG}, {2: ""}, 2),
        ({1: WRONG, 2: WRONG}, {1: WRONG, 2: ""}, 2),
        ({1: WRONG, 2: ""}, {1: WRONG}, None),
        ({1: "", 2: ""}, {}, None),
    ],
    ids=["a hit", "something else is wrong first", "the package itself fails", "nothing else", "nothing"],
)
def test_what_counts_as_found(bugged: dict[int, str], sound: dict[int, str], found: int | None) -> None:
    """What the patch says is wrong, in a case that the package itself passes."""

    def run(seed: int, count: int, planted: bool) -> str:
        cases = bugged if planted else sound
        lines = []
        for number in range(seed, seed + count):
            lines += [f"seed {number}: 5 steps", *filter(None, [cases[number]])]
            if cases[number]:
                break
        return "\n".join(lines)

    assert planted_bugs.first_hit(re.compile("succeeded .* times"), run, 1, 2, print) == found


def report_of(cases: int, kinds: tuple[str, ...], **strike: object) -> Report:
    """That of a series in which each case was struck so, and nothing was wrong."""
    report, case = Report(), make_case(1)
    for _ in range(cases):
        strikes = [Strike(kind, "s1", 1, "sb-1", 0.0, **{"running": True, **strike}) for kind in kinds]  # type: ignore[arg-type]
        report.add(case, Seen(run="completed", flow_run="Completed", strikes=strikes), [])
    return report


def test_a_kind_that_never_struck_a_running_step_fails_a_series() -> None:
    assert report_of(ENOUGH, KINDS).good
    report = report_of(ENOUGH, KINDS[1:])
    assert (report.good, report.never) == (False, [KINDS[0]])
    assert f"never struck a running step: {KINDS[0]}" in str(report)
    for missed in ({"running": False}, {"refused": "the run has failed"}):
        assert report_of(ENOUGH, KINDS, **missed).never == list(KINDS)


def test_of_few_cases_a_report_says_that_they_are_too_few() -> None:
    few = report_of(ENOUGH - 1, LOST)
    assert (few.good, few.never) == (True, [])
    said = f"too few runs to judge by kinds that never struck: {ENOUGH - 1}, of {ENOUGH}"
    assert said in str(few)
    assert few.as_json()["enough"] is False
    assert "too few" not in str(report_of(ENOUGH, KINDS))


def test_something_wrong_in_one_case_fails_a_series() -> None:
    report = report_of(ENOUGH, KINDS)
    report.add(make_case(7), Seen(run="failed", flow_run="Failed"), ["s1 succeeded 2 times"])
    assert (report.good, report.failed) == (False, {7: ["s1 succeeded 2 times"]})
    assert "seed 7: s1 succeeded 2 times" in str(report)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", planted_bugs.NAMES)
def test_a_planted_bug_is_found(name: str) -> None:
    printed: list[str] = []
    assert planted_bugs.look_for(name, say=printed.append) is not None, "\n".join(printed)[-8000:]

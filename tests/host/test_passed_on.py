"""What a step's process was told by ZenML, passed on to its host and to later steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.flow_run.outcome import End, Reported, SandboxEnd, StepRecord
from bridge.host.ends import decode, encode
from bridge.host.passed_on import PassedOn, tell_end, told_end
from tests.host.conftest import Zen

RECORD = StepRecord(Reported.SUCCEEDED, "0b5c", 2)


def test_an_end_is_passed_on_once_and_travels_in_its_frame(tmp_path: Path) -> None:
    path = str(tmp_path / "work.end")
    tell_end(path, RECORD)
    end = SandboxEnd(End.EXITED, 0, record=told_end(path))
    assert end.record == RECORD
    assert decode(encode(end)).record == RECORD
    assert told_end(path) is None
    assert list(tmp_path.iterdir()) == []


def test_an_end_of_which_nothing_was_passed_on() -> None:
    assert decode(encode(SandboxEnd(End.EXITED, 0))).record is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "{}", json.dumps({"reported": "completed"}), "\udcff"]
    + [
        json.dumps({"reported": "completed", "step_run_id": "0b5c", "version": 2} | change)
        for change in ({"reported": "splendid"}, {"reported": None}, {"step_run_id": None}, {"version": "2"})
    ],
)
def test_what_cannot_be_read_counts_as_nothing(text: str, tmp_path: Path) -> None:
    path = tmp_path / "work.end"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert told_end(str(path)) is None


def test_where_there_is_no_room_nothing_is_passed_on_and_nobody_fails(tmp_path: Path) -> None:
    """A step that has filled the disk must not cost the next one: ZenML is asked instead."""
    full = PassedOn(str(tmp_path / "not" / "there"))
    full.keep(None, lambda: "the run")
    assert full.of(None) is None
    tell_end(str(tmp_path / "not" / "there.end"), RECORD)
    (tmp_path / "run").mkdir()
    blocked = PassedOn(str(tmp_path))
    assert blocked.of(None) is None
    tell_end(str(tmp_path / "run"), RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nor is anything left"
    assert told_end(str(tmp_path / "run")) is None


def test_the_first_that_passes_something_on_is_heard(tmp_path: Path) -> None:
    passed_on = PassedOn(str(tmp_path))
    assert passed_on.of(None) is None
    assert passed_on.of("../a step") is None
    passed_on.keep(None, lambda: "the run")
    passed_on.keep("../a step", lambda: "its step run")
    passed_on.keep("../a step", lambda: "another")
    assert (passed_on.of(None), passed_on.of("../a step")) == (b"the run", b"its step run")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow  # two hosts and a server
def test_a_step_sees_what_others_have_added_to_the_run_since_its_host_has_read_it(zen: Zen, tmp_path: Path) -> None:
    job = zen.submit("notes", tmp_path)
    code, output = job.pipeline()
    assert code == 0, output
    notes = [f"note_{number}" for number in range(4)]
    for number, step in enumerate(notes):
        (seen,) = job.trace(step)
        assert set(notes) & set(seen["seen"]) == set(notes[:number])
        assert set(notes) & set(seen["tags"]) == set(notes[:number])
        assert seen["status"] == "running"


@pytest.mark.slow  # two hosts and a server
def test_a_step_that_passes_on_what_zenml_never_said_is_asked_for_in_zenml(zen: Zen, tmp_path: Path) -> None:
    def claim(**change: object) -> str:
        return json.dumps({"reported": "completed", "step_run_id": "0b5c", "version": 1} | change)

    texts = {
        "garbage": "{",
        "failed": claim(reported="failed"),
        "running": claim(reported="running"),
        "nothing": claim(reported="nothing"),
        "earlier": claim(version=0),
        "nameless": claim(step_run_id=None),
    }
    job = zen.submit("passing_on", tmp_path, options={"execution_mode": "continue_on_failure"}, texts=texts)
    code, output = job.pipeline()
    assert code == 1, output
    assert job.statuses()[1] == {step: ["failed"] for step in texts}
    assert output.count("exited with 0, but ZenML has no successful step run") == len(texts)

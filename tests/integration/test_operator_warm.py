"""Steps of one run that a step operator runs take turns in warm sandboxes, where one process calls it for all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.integration.lab import STACK_CODE, Lab, Ran, eventually
from tests.integration.refusals import names_all
from tests.integration.test_step_operator import (
    CALLER_IMAGE,
    Held,
    Operators,
    as_if_its_caller_had_died,
    boxes_of,
    here,
    logged,
    modal,
    of_step,
    operated,
    operators,
    strike,
)
from tests.loopback import LoopbackModal

__all__ = ["here", "modal", "operated", "operators"]  # fixtures


@pytest.fixture(autouse=True)
def stack_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STACK_CODE))  # as installed packages are, for local processes


def all_boxes(modal: LoopbackModal, ran: Ran) -> list[Any]:
    return [box for found in boxes_of(modal, ran).values() for box in found]


def is_over(modal: LoopbackModal, sandbox: str, seconds: float = 20) -> bool:
    status = eventually(lambda: modal.sandbox(sandbox).status, lambda status: status not in RUNNING, seconds)
    return status not in RUNNING


RUNNING = ("pending", "running")


@pytest.mark.at("modal-v2", "process")
def test_a_chain_takes_one_sandbox(here: Lab, modal: LoopbackModal, operators: Operators, operated, place: str) -> None:
    ran = here.run(operated.chained, operators.stack([operators.operator(place)]), length=4)
    assert ran.error is None
    steps = [f"train_{number}" for number in range(4)]
    assert ran.steps == dict.fromkeys(steps, "completed")
    assert ran.run.steps["train_3"].output.load() == 45
    traces = [ran.traces(step)[0] for step in steps]
    (sandbox,) = {trace["sandbox"] for trace in traces}
    assert len({trace["pid"] for trace in traces}) == 4
    assert {str(ran.run.steps[step].run_metadata["modal_sandbox_id"]) for step in steps} == {sandbox}
    assert [logged(ran.run.steps[step], "step").count("training on") for step in steps] == [1, 1, 1, 1]
    if place == "modal":
        (box,) = all_boxes(modal, ran)
        assert box.id == sandbox
        assert box.app == "zenml-chained"
        assert not {"zenml_step", "zenml_step_run_id"} & set(box.tags)
        assert is_over(modal, sandbox), "with the last step that can use it"


def test_steps_go_on_when_nobody_reads_any_more(
    here: Lab, operators: Operators, operated, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with ``| head``: who read this process's output has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as nobody, open(os.devnull, "w") as anywhere:
        monkeypatch.setattr(sys, "stdout", nobody)
        ran = here.run(operated.chained, operators.stack([operators.operator("process")]), length=2)
        os.dup2(anywhere.fileno(), writer)  # else closing it fails, for what it couldn't write
    assert ran.error is None
    assert ran.steps == {"train_0": "completed", "train_1": "completed"}
    assert "output are lost: BrokenPipeError" in caplog.text


@pytest.mark.slow  # tests/unit/test_operated.py says who shares
@pytest.mark.at("modal-v2")
def test_without_warm_each_step_has_a_sandbox_of_its_own(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, place: str
) -> None:
    """So it is for a step that says so alone, though the others have one together."""
    alone = {"steps": {"train_1": {"settings": {"step_operator": {"warm": False}}}}}
    operator = operators.operator(place, warm_idle_timeout=600)
    ran = here.run(operated.chained, operators.stack([operator]), options=alone)
    assert ran.error is None
    first, second, third = (ran.traces(f"train_{number}")[0]["sandbox"] for number in range(3))
    assert first == third != second
    cold = here.run(operated.chained, operators.stack([operators.operator(place, warm=False)]), length=2)
    assert cold.error is None
    if place == "modal":
        assert set(boxes_of(modal, ran)) == {"", "train_1"}
        assert set(boxes_of(modal, cold)) == {"train_0", "train_1"}


@pytest.mark.at("process")
def test_kinds_and_variables_stay_apart(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, place: str
) -> None:
    ran = here.run(operated.kinds, operators.stack([operators.operator(place, warm_idle_timeout=600)]))
    assert ran.error is None
    first, big, last = (ran.traces(step)[0] for step in ("first", "big", "last"))
    assert first["sandbox"] == last["sandbox"] != big["sandbox"]
    assert (first["USER_VARIABLE"], last["USER_VARIABLE"]) == ("of the step", None)
    if place == "modal":
        assert {box.id: box.memory_mib for box in all_boxes(modal, ran)}[big["sandbox"]] == 2048
        assert set(boxes_of(modal, ran)) == {"", "big"}


@pytest.mark.slow
def test_no_end_of_a_step_spoils_the_next(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path
) -> None:
    striker = threading.Thread(target=strike, args=(modal, tmp_path, "oom"))
    striker.start()
    ran = here.run(operated.ends_in_turns, operators.stack([operators.operator("modal")]), into=tmp_path)
    striker.join()
    assert ran.error is None
    steps = ("before", "raises", "killed", "timeout", "oom", "after")
    assert ran.steps == dict.fromkeys(steps, "completed")
    sandboxes = {step: [trace["sandbox"] for trace in ran.traces(step)] for step in steps}
    first, second, third, fourth = dict.fromkeys(sandbox for found in sandboxes.values() for sandbox in found)
    assert sandboxes == {
        "before": [first],
        "raises": [first, first],
        "killed": [first, second],
        "timeout": [second, third],
        "oom": [third, fourth],
        "after": [fourth],
    }
    assert all(is_over(modal, sandbox) for sandbox in (first, second, third, fourth))


def begun_before(step_operator: str, run_id: str) -> Any:
    """The step run before the one that hangs."""
    from zenml.client import Client

    return Client().list_run_steps(pipeline_run_id=run_id, name="before", hydrate=True).items[0]


def test_somebody_else_asks_and_cancels(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path
) -> None:
    """A step in a shared sandbox, as a process sees it that didn't begin it."""
    operator = operators.operator("modal")
    held = Held(here, operators.stack([operator]), operated.hangs_in_turns, tmp_path)
    box = held.box(modal)
    assert "zenml_step" not in box.tags
    other, step_run = of_step(operator, box.tags["zenml_run_id"])
    before = begun_before(operator, box.tags["zenml_run_id"])
    assert (other.get_status(before).value, other.get_status(step_run).value) == ("completed", "running")
    other.cancel(before)
    assert (held.box(modal).status, other.get_status(step_run).value) == ("running", "running"), "it is another step's"
    other.cancel(step_run)
    assert held.box(modal).status != "running"
    ran = held.join()
    assert ran.steps == {"before": "completed", "hangs": "stopped"}
    assert other.get_status(step_run).value == "stopped"
    assert len(all_boxes(modal, ran)) == 1


@pytest.mark.slow
def test_one_whose_caller_is_gone_is_swept(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path
) -> None:
    from bridge.cleanup.sweep import stacks, sweep

    operator = operators.operator("modal")
    name = operators.stack([operator])
    held = Held(here, name, operated.hangs_in_turns, tmp_path)
    box = held.box(modal)
    _, step_run = of_step(operator, box.tags["zenml_run_id"])
    (stack,) = stacks(name)
    assert sweep(stack, end=True).lines() == [f"stack {name}: 1 step runs with a caller, 1 sandboxes in them"]
    as_if_its_caller_had_died(step_run)
    report = sweep(stack, end=False)
    names_all("\n".join(report.lines()), "nobody's: whoever called the step operator", f"{box.id} of step hangs")
    assert not sweep(stack, end=True).problems
    assert held.box(modal).status == "terminated"
    ran = held.join()
    assert ran.steps == {"before": "completed", "hangs": "failed"}
    assert sweep(stack, end=True).found == []


CALLER = """
import sys
from tests.integration.lab import IMAGE, PROJECT, STACK_CODE
sys.path[:0] = [str(STACK_CODE), str(PROJECT)]
from zenml.client import Client
from zenml.config import DockerSettings
from zenml.utils import source_utils
source_utils.set_custom_source_root(str(PROJECT))
Client().activate_stack(sys.argv[1])
import operated
docker = DockerSettings(parent_image=IMAGE, skip_build=True)
getattr(operated, sys.argv[2]).with_options(settings={"docker": docker})(sys.argv[3])
"""


@contextmanager
def calling(stack: str, pipeline: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that calls a pipeline on ZenML's local orchestrator."""
    environment = {**os.environ, "ZENML_CONFIG_PATH": str(folder / "zenml"), "PYTHONPATH": str(servers.ROOT)}
    with (folder / "caller.log").open("wb") as log:
        arguments = [sys.executable, "-c", CALLER, stack, pipeline, str(folder)]
        caller = subprocess.Popen(arguments, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        yield caller
    finally:
        caller.kill()
        caller.wait(60)


@pytest.mark.slow
def test_a_killed_caller_leaves_nothing_for_long(
    here: Lab, modal: LoopbackModal, operators: Operators, tmp_path: Path
) -> None:
    """The step ends with its lease; the sandbox, which the sweep leaves alone, when it was idle."""
    from bridge.cleanup.sweep import stacks, sweep

    name = operators.stack([operators.operator("modal", orphan_timeout=8, warm_idle_timeout=1)])
    ran = Ran(tmp_path)
    with calling(name, "hangs_in_turns", tmp_path) as caller:
        assert eventually(lambda: ran.traces("hangs") or caller.poll() is not None, bool, 120)
        assert caller.poll() is None, (tmp_path / "caller.log").read_text()[-3000:]
        caller.send_signal(signal.SIGKILL)
    box = modal.sandbox(ran.traces("hangs")[0]["sandbox"])

    def steps() -> dict[str, str]:
        return here.read(ran, box.tags["zenml_run_id"]).steps

    assert eventually(steps, lambda found: found["hangs"] == "failed", 60) == {"before": "completed", "hangs": "failed"}
    said = ran.run.steps["hangs"].exception_info.message
    names_all(said, "Whoever called the step operator for this step is gone", "no sign of life for 8 s")
    (stack,) = stacks(name)
    # The run has failed, but ZenML would say so too while other steps of it went on.
    left_alone = "left alone: no step is in it: another one may come, and where none does it ends by itself"
    names_all("\n".join(sweep(stack, end=False).lines()), left_alone, box.id)
    assert is_over(modal, box.id, 100)
    assert len(all_boxes(modal, ran)) == 1


@pytest.mark.slow
def test_what_is_idle_goes_with_its_process(
    here: Lab, modal: LoopbackModal, operators: Operators, tmp_path: Path
) -> None:
    """Nobody tells the operator that the run is over before the last of its steps."""
    ran = Ran(tmp_path)
    with calling(operators.stack([operators.operator("modal")]), "broken_off", tmp_path) as caller:
        assert caller.wait(120) == 1
    assert modal.sandbox(ran.traces("before")[0]["sandbox"]).status == "terminated"


@pytest.mark.slow
def test_what_a_run_had_before_its_sandbox_went_is_known_to_the_next(
    here: Lab, modal: LoopbackModal, operators: Operators, operated, tmp_path: Path
) -> None:
    """The second sandbox goes with the last step: the one that ended in the first isn't waited for."""
    ran = Ran(tmp_path)

    def go_on_without_it() -> None:
        traces = eventually(lambda: ran.traces("a"), bool, 90)
        assert is_over(modal, traces[0]["sandbox"], 60)
        (tmp_path / "go").touch()

    waiting = threading.Thread(target=go_on_without_it)
    waiting.start()
    name = operators.stack([operators.operator("modal", warm_idle_timeout=20)])
    ran = here.run(operated.in_two_parts, name, into=tmp_path)
    waiting.join()
    assert ran.error is None
    first, second, last = (ran.traces(step)[0]["sandbox"] for step in ("a", "c", "d"))
    assert first != second == last
    assert is_over(modal, last, 12)


@pytest.mark.slow
def test_what_is_idle_for_too_long_goes(here: Lab, modal: LoopbackModal, operators: Operators, operated) -> None:
    ran = here.run(operated.broken_off, operators.stack([operators.operator("modal", warm_idle_timeout=5)]))
    assert ran.steps == {"before": "completed", "fail": "failed"}
    sandbox = ran.traces("before")[0]["sandbox"]
    assert is_over(modal, sandbox, 30)
    record = modal.sandbox(sandbox)
    assert record.created_at + record.seconds - ran.traces("fail")[0]["time"] > 1, "it was kept for a while"


@pytest.mark.slow
def test_where_each_step_has_a_caller_of_its_own_it_has_a_sandbox_of_its_own(
    here: Lab, modal: LoopbackModal, operators: Operators, operated
) -> None:
    """In our orchestrator's one sandbox, whose steps have processes of their own."""
    stack = operators.stack([operators.operator("modal")], "modal")
    ran = here.run(operated.chained, stack, settings={"execution_mode": "pipeline"}, image=CALLER_IMAGE, length=2)
    assert ran.error is None
    own = [box for box in all_boxes(modal, ran) if "zenml_step_operator" in box.tags]
    assert sorted(box.tags["zenml_step"] for box in own) == ["train_0", "train_1"]

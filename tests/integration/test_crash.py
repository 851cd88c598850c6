"""The process that runs the flow is killed, at several moments, and another one goes on with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Crashed, Scheduled
from zenml.client import Client
from zenml.enums import ExecutionStatus

from bridge.cleanup.lease import FIRST_SIGN_SECONDS, signer
from bridge.cleanup.signs_of_life import last_sign
from bridge.names import FLOW_ENTRYPOINT
from bridge.runners import supervisor
from tests.integration.forwarder import Forwarder
from tests.integration.lab import PROJECT, STACK_CODE, Lab, Ran, asked, eventually
from tests.integration.lives import Lives
from tests.integration.test_cli import COMMAND
from tests.integration.under import cancel
from tests.integration.workers import Worker, make_pool

COLD = {"execution_mode": "per_step", "warm": False}
WARM = {"execution_mode": "per_step"}
PIPELINE = {"execution_mode": "pipeline"}
MODES = {"cold": COLD, "warm": WARM, "pipeline": PIPELINE}

LINES = 40
"""How many lines `told` prints before it waits, and after."""

slow = pytest.mark.slow


def said(step: str, attempt: int) -> list[str]:
    """What an attempt of `told` prints."""
    return [f"{step} {attempt} {part} {number}" for part in ("before", "after") for number in range(LINES)]


def output(lab: Lab, ran: Ran, task_run: str) -> list[str]:
    """The lines of steps in a task run's log, without what `pipeline` mode puts in front."""
    lines = [line.partition("] ")[2] if line.startswith("[") else line for line in lab.logs(ran.task_runs[task_run])]
    return [line for line in lines if line.split(" ")[2:3] in (["before"], ["after"])]


WALK = [
    pytest.param("modal", "warm"),
    pytest.param("modal", "pipeline", marks=slow),
    pytest.param("process", "cold", marks=slow),
    pytest.param("modal", "cold", marks=slow),
    pytest.param("process", "warm", marks=slow),
    pytest.param("process", "pipeline", marks=slow),
]


@pytest.mark.parametrize(("place", "mode"), WALK)
def test_a_flow_with_many_lives(lab: Lab, tmp_path: Path, place: str, mode: str) -> None:
    """Killed while a step runs, which goes on; while one ends; while one fails that is tried again; at the very end."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("three", place, MODES[mode])
        lives.until_logged(f"first 1 before {LINES - 1}")
        lives.kill()
        lives.go_on()
        lives.until_signed()
        lives.go("first-1")
        lives.until("second")
        lives.kill()
        lives.go("second-1")
        if mode == "pipeline":
            lives.until("third")
        else:
            lives.until_zenml({"first": "completed", "second": "completed"})
        lives.go_on(by_flow_run=True)
        lives.until_signed()
        lives.until("third")
        lives.kill()
        lives.fail("third-1")
        lives.go("third-1")
        if mode == "pipeline":
            lives.until("third", 2)
        else:
            lives.until_zenml({"first": "completed", "second": "completed", "third": "retrying"})
        lives.go_on()
        lives.until_signed()
        lives.until("third", 2)
        lives.until_logged(f"third 2 before {LINES - 1}")
        lives.kill()
        lives.go("third-2")
        lives.until_zenml({"first": "completed", "second": "completed", "third": "completed"})
        ran = lives.go_on().end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert ran.flow_run.run_count == lives.number == 5
    assert crashes_of(lives) == ["Its process is gone; `modal-prefect resume` found it Running."] * 4
    begun = {step: len(ran.traces(step)) for step in ("first", "second", "third")}
    assert begun == {"first": 1, "second": 1, "third": 2}
    if mode == "pipeline":
        assert ran.states == {"three": "Completed"}
        assert ran.task_runs["three"].run_count == 1
        everything = said("first", 1) + said("second", 1) + said("third", 1) + said("third", 2)
        assert Counter(output(lab, ran, "three")) == Counter(everything)
    else:
        assert ran.states == {"first": "Completed", "second": "Completed", "third": "Completed"}
        assert ran.inputs == {"first": set(), "second": {"first"}, "third": {"second"}}
        assert ran.task_runs["third"].run_count == 2
        assert output(lab, ran, "first") == said("first", 1)
        assert output(lab, ran, "second") == said("second", 1)
        assert output(lab, ran, "third") == said("third", 1) + said("third", 2)
    if place == "modal":
        made = {"cold": {"first": 1, "second": 1, "third": 2}, "warm": {"": 1}, "pipeline": {"": 1}}[mode]
        assert lab.sandboxes_by_step(ran) == made
        assert not lab.running(ran)


STRUCK = {"evicted": (2, 1), "killed": (2, 2), "forgotten": (2, 1), "kept": (1, 1), "done": (1, 1)}
"""What became of a step's sandbox, and what comes of it: attempts of its code, and ZenML's step runs."""


def strike(lab: Lab, how: str, trace: dict[str, Any]) -> None:
    """Let this become of the sandbox in which a step has left this trace. A process is lost with its supervisor."""
    if trace["sandbox"].startswith("sb-local-"):
        step = psutil.Process(trace["pid"])
        supervising = next(each for each in step.parents() if supervisor.__file__ in each.cmdline())
        {"evicted": supervising, "killed": step}[how].kill()
    else:
        strikes = {"evicted": lab.modal.evict, "killed": lab.modal.kill, "forgotten": lab.modal.forget}
        strikes[how](trace["sandbox"])


@pytest.mark.parametrize(
    ("place", "mode", "steps"),
    [
        pytest.param("modal", "cold", ["evicted", "killed"], marks=slow),  # test_ends.py has them, with a living flow
        pytest.param("modal", "cold", list(STRUCK), marks=slow),
        pytest.param("modal", "warm", list(STRUCK), marks=slow),
        pytest.param("process", "cold", ["evicted", "killed", "kept", "done"], marks=slow),
    ],
)
def test_what_became_of_sandboxes_meanwhile(lab: Lab, tmp_path: Path, place: str, mode: str, steps: list[str]) -> None:
    """Judged from ZenML and from the sandbox that was recorded; what the infrastructure did costs no retry."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("beside", place, {**MODES[mode], "max_parallelism": len(steps)}, steps=steps)
        for step in steps:
            lives.until(step)
        lives.kill()
        lives.go("done-1")
        if "done" in steps:
            lives.until_zenml({**dict.fromkeys(steps, "running"), "done": "completed"})
        for step in {"evicted", "killed", "forgotten"} & set(steps):
            strike(lab, step, lives.under.ran.traces(step)[0])
        lives.go("kept-1", "evicted-2", "killed-2", "forgotten-2")
        ran = lives.go_on().end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    found = {step: (len(ran.traces(step)), ran.run.steps[step].version) for step in steps}
    assert found == {step: STRUCK[step] for step in steps}
    assert {step: ran.task_runs[step].run_count for step in steps} == {step: STRUCK[step][1] for step in steps}
    for step in {"kept", "done"} & set(steps):
        assert output(lab, ran, step) == said(step, 1)
    assert not lab.running(ran)


@slow
@pytest.mark.parametrize("how", ["evicted", "forgotten", "killed"])
def test_a_pipeline_s_sandbox_is_lost_meanwhile(lab: Lab, tmp_path: Path, how: str) -> None:
    """Evicted or forgotten, the same step runs go on in another one; killed, each step has used a retry."""
    steps = ["one", "two"]
    with Lives(lab, tmp_path) as lives:
        lives.begin("beside", "modal", PIPELINE, steps=steps)
        for step in steps:
            lives.until(step)
            lives.until_logged(f"{step} 1 before {LINES - 1}")
        lives.until_zenml(dict.fromkeys(steps, "running"))
        lives.kill()
        strike(lab, how, lives.under.ran.traces("one")[0])
        lives.go("one-2", "two-2")
        ran = lives.go_on().end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    found = {step: (len(ran.traces(step)), ran.run.steps[step].version) for step in steps}
    assert found == dict.fromkeys(steps, STRUCK[how])
    assert ran.states == {"beside": "Completed"}
    assert ran.task_runs["beside"].run_count == 2
    assert len({trace["sandbox"] for step in steps for trace in ran.traces(step)}) == 2
    assert not lab.running(ran)


@slow
def test_zenml_says_which_sandbox_a_pipeline_had(lab: Lab, tmp_path: Path) -> None:
    """Prefect was away when it came, so its logs don't tell; a step that runs does."""
    with Lives(lab, tmp_path) as lives:
        with away_from_the_first_create(lab):
            lives.begin("beside", "modal", PIPELINE, steps=["one", "two"])
            for step in ("one", "two"):
                lives.until(step)
            lives.kill()
        lab.modal.kill(lives.under.ran.traces("one")[0]["sandbox"])
        lives.go("one-2", "two-2")
        ran = lives.go_on(sure=True).end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    found = {step: (len(ran.traces(step)), ran.run.steps[step].version) for step in ran.steps}
    assert found == {"one": (2, 2), "two": (2, 2)}
    assert ran.task_runs["beside"].run_count == 2
    assert not lab.running(ran)


@slow
def test_zenml_says_which_sandbox_a_step_had(lab: Lab, tmp_path: Path) -> None:
    """The same of a sandbox of its own, which was killed: nobody takes it for one that was lost."""
    with Lives(lab, tmp_path) as lives:
        with away_from_the_first_create(lab):
            lives.begin("beside", "modal", COLD, steps=["one"])
            lives.until("one")
            lives.until_zenml({"one": "running"})
            lives.kill()
        lab.modal.kill(lives.under.ran.traces("one")[0]["sandbox"])
        lives.go("one-2")
        ran = lives.go_on(sure=True).end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert (len(ran.traces("one")), ran.run.steps["one"].version, ran.task_runs["one"].run_count) == (2, 2, 2)
    assert not lab.running(ran)


@contextmanager
def away_from_the_first_create(lab: Lab) -> Iterator[None]:
    """Prefect is away from the moment at which the first sandbox is being made, to the end of the block."""
    lab.modal.set(create_delay=5.0)

    def stop() -> None:
        if eventually(lambda: lab.modal.stats().creating, bool, 120):
            lab.prefect.stop()
        lab.modal.set(create_delay=0.0)

    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        yield
    finally:
        stopping.join()
        lab.prefect.start()


@slow
def test_what_a_pipeline_had_lost_before_counts(lab: Lab, tmp_path: Path) -> None:
    """Its sandbox is evicted, then the flow killed, then the next one evicted: that is one more than it may lose."""
    steps = ("one", "two")
    with Lives(lab, tmp_path) as lives:
        lives.begin("apart", "modal", {**PIPELINE, "infrastructure_retries": 1})
        for step in steps:
            lives.until(step)
        lab.modal.evict(lives.under.ran.traces("one")[0]["sandbox"])
        for step in steps:
            lives.until(step, 2)
            lives.until_logged(f"{step} 2 before {LINES - 1}")
        lives.kill()
        lab.modal.evict(lives.under.ran.traces("one")[1]["sandbox"])
        lives.go("one-3", "two-3")
        ran = lives.go_on().end()
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed"), lives.log[-6000:]
    assert ran.steps == {"one": "failed", "two": "failed"}
    found = {step: (len(ran.traces(step)), ran.run.steps[step].version) for step in steps}
    assert found == {"one": (2, 1), "two": (2, 1)}
    assert ran.states == {"apart": "Failed"}
    assert ran.task_runs["apart"].run_count == 2
    assert lab.sandboxes_by_step(ran) == {"": 2}
    assert not lab.running(ran)


@slow
def test_a_step_is_left_alone_where_another_has_failed(lab: Lab, tmp_path: Path) -> None:
    """One failed in a warm sandbox and waits for its retry, another one runs there: the flow comes back to both."""
    settings = {**WARM, "max_parallelism": 1, "warm_idle_timeout": 2}
    with Lives(lab, tmp_path) as lives:
        lives.begin("beside", "modal", settings, steps=["one", "two"], delay=40)
        lives.until("one")
        lives.fail("one-1")
        lives.go("one-1")
        lives.until("two")
        lives.until_zenml({"one": "retrying", "two": "running"})
        lives.kill()
        lives.go_on()
        lives.until_signed()
        threading.Event().wait(8)  # longer than an idle sandbox is kept
        lives.go("two-1", "one-2")
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert {step: len(ran.traces(step)) for step in ("one", "two")} == {"one": 2, "two": 1}
    assert ran.traces("one")[0]["sandbox"] == ran.traces("two")[0]["sandbox"]
    assert output(lab, ran, "two") == said("two", 1)


@slow
@pytest.mark.parametrize("mode", list(MODES))
def test_before_the_first_sandbox(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Killed as soon as the flow run runs; then while its first sandbox is being made, which comes up all the same."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("three", "modal", {**MODES[mode], "warm_idle_timeout": 2})
        lives.until_running()
        lives.kill()
        lab.modal.set(create_delay=20.0)
        lives.go_on(sure=True)
        assert eventually(lambda: lab.modal.stats().creating, bool, 120), lives.log[-6000:]
        lives.kill()
        lab.modal.set(create_delay=0.0)
        lives.go_on()
        lives.until_logged(f"first 1 before {LINES - 1}")
        assert eventually(lambda: lab.modal.stats().creating, lambda creating: not creating, 60) == 0
        lives.go("first-1", "second-1", "third-1")
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert ran.flow_run.run_count == 3
    assert {step: len(ran.traces(step)) for step in ran.steps} == {"first": 1, "second": 1, "third": 1}
    if mode == "pipeline":
        assert ran.states == {"three": "Completed"}
        assert Counter(output(lab, ran, "three")) == Counter(said("first", 1) + said("second", 1) + said("third", 1))
    else:
        assert ran.states == {"first": "Completed", "second": "Completed", "third": "Completed"}
        assert output(lab, ran, "first") == said("first", 1)
    made = lab.sandboxes_by_step(ran)
    if mode == "warm":
        # The name of a warm one is nobody's: the dead flow's comes up beside it, and ends since no step comes.
        assert made == {"": 2}
        assert not eventually(lambda: lab.running(ran), lambda running: not running, 120)
    else:
        assert made == ({"": 1} if mode == "pipeline" else {"first": 1, "second": 1, "third": 1})
        assert not lab.running(ran)


@slow  # test_open_run.py has a run that is over, test_bad_input.py one that another flow works on
def test_what_is_not_resumed(lab: Lab, tmp_path: Path) -> None:
    """A flow that is alive; a run that failed meanwhile, also where Prefect runs its flow again; what there isn't."""
    from bridge.errors import RunIsOver, RunNotPossible
    from bridge.flow import zenml_pipeline
    from bridge.flow_run.revival import resume
    from bridge.upstream_prefect import run_existing_flow_run

    def go_on(some_id: UUID) -> None:
        resume(some_id, sure=True, here=True, say=print)

    with Lives(lab, tmp_path) as lives:
        lives.begin("alone", "process", WARM)
        lives.until("only")
        with pytest.raises(RunNotPossible, match=r"is alive: its process, \d+, is on this machine"):
            go_on(lives.under.run_id)
        assert flow_run_of(lives).state.is_running()
        lives.kill()
        lives.fail("only-1")
        lives.go("only-1")
        lives.until_zenml({"only": "failed"})
        for some_id in (lives.under.run_id, lives.under.flow_run_id):
            with pytest.raises(RunIsOver, match=rf"is failed already.*replay\(pipeline_run='{lives.under.run_id}'"):
                go_on(some_id)
            assert (flow_run_of(lives).state.name, task_runs_of(lives)) == ("Failed", {"only": "Failed"})
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(lives.under.flow_run_id, Scheduled(), force=True)
        state = run_existing_flow_run(zenml_pipeline, flow_run_of(lives), flow_run_of(lives).parameters)
        assert state.is_failed()
        assert f"replay(pipeline_run='{lives.under.run_id}'" in state.message
        ran = lab.read(Ran(tmp_path), lives.under.run_id)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.states == {"only": "Failed"}
    assert len(lives.under.ran.traces("only")) == 1
    with pytest.raises(RunNotPossible, match="neither a run of this ZenML server nor a flow run of this Prefect"):
        go_on(uuid4())


@slow
@pytest.mark.parametrize(
    ("where", "place"),
    [("prefect", "process"), ("zenml", "process"), ("is over", "process"), ("prefect", "modal")],
)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_flow_that_died_before_it_had_stopped_its_run(
    lab: Lab, tmp_path: Path, mode: str, where: str, place: str
) -> None:
    from zenml.orchestrators.publish_utils import publish_pipeline_run_status_update

    steps = {"static": ("one", "two"), "dynamic": ("apart", "here")}[mode]
    with Lives(lab, tmp_path) as lives:
        if mode == "static":
            lives.begin("beside", place, WARM, steps=["one", "two"], below="below")
        else:
            lives.begin("dynamic", place, {})
        for step in steps:
            lives.until(step)
        lives.kill()
        if where == "zenml":
            # What `zenml pipeline runs stop --graceful` does where it sees the flow alive.
            publish_pipeline_run_status_update(lives.under.run_id, ExecutionStatus.STOPPING)
        elif where == "prefect":
            cancel(lives.under.flow_run_id)
        else:
            # As a worker says that has killed the process which it was to cancel.
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(lives.under.flow_run_id, Cancelled(), force=True)
        ran = lives.go_on().end()
        assert lives.under.all_dead()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled"), lives.log[-6000:]
    assert ran.steps == dict.fromkeys(steps, "stopped")
    if mode == "dynamic":
        assert ran.states == {"dynamic": "Cancelled", "apart": "Cancelled"}
    else:
        assert {step: ran.states[step] for step in steps} == dict.fromkeys(steps, "Cancelled")
    # On a slow machine its steps may have seen the stop by themselves before anybody went on: the run is over then.
    over = where == "is over" or (where == "zenml" and "skip_successful_steps" in lives.log)
    if mode == "static" and not over:
        assert ran.states["below"] == "NotRun"
        assert output(lab, ran, "one") == said("one", 1)[:LINES], "also what was said while no process read it"
    assert lives.under.all_dead()
    assert not lab.running(ran)


@slow
def test_interrupted_while_it_looks_what_there_is(lab: Lab, tmp_path: Path) -> None:
    """It has taken up nothing yet; what the dead one left, a step that waits for its retry too, ends all the same."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("beside", "modal", {**WARM, "max_parallelism": 1}, steps=["one", "two"], delay=60)
        lives.until("one")
        lives.fail("one-1")
        lives.go("one-1")
        lives.until("two")
        lives.until_zenml({"one": "retrying", "two": "running"})
        lives.kill()
        lab.modal.unavailable(100)  # so it can't look before it is interrupted
        lives.go_on()
        assert eventually(lambda: lives.log.count("two [default"), lambda plans: plans == 2, 60) == 2, lives.log[-6000:]
        threading.Event().wait(2)  # nothing tells that it asks Modal now
        lives.interrupt()
        lab.modal.unavailable(0)
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled"), lives.log[-6000:]
    assert ran.steps == {"one": "stopped", "two": "stopped"}
    assert ran.states == {"one": "Cancelled", "two": "Cancelled"}
    assert (output(lab, ran, "one"), output(lab, ran, "two")) == (said("one", 1), said("two", 1)[:LINES])
    assert not lab.running(ran)


def one_fails_alone(lives: Lives, mode: str) -> None:
    """A step fails after its flow was killed, while another one runs."""
    lives.begin("apart", "modal", MODES[mode])
    lives.until("one")
    lives.until("two")
    lives.kill()
    lives.fail("one-1")
    lives.go("one-1")
    lives.until_zenml({"one": "failed", "two": "running"})


def refused(lives: Lives) -> str:
    """What `modal-prefect resume` says and does, whose run has failed."""
    from bridge.errors import RunIsOver
    from bridge.flow_run.revival import resume

    said: list[str] = []
    with pytest.raises(RunIsOver, match="is failed already"):
        resume(lives.under.run_id, sure=False, here=True, say=said.append)
    return "".join(said)


@slow
def test_a_run_that_failed_without_its_flow_while_a_step_runs(lab: Lab, tmp_path: Path) -> None:
    """The step has its time; then both sides end, and the sandboxes with them."""
    with Lives(lab, tmp_path) as lives:
        one_fails_alone(lives, "cold")
        assert "Steps of this run still run. They have 1800 s" in refused(lives)
        assert flow_run_of(lives).state.is_running()
        assert lab.running(lab.read(Ran(tmp_path), lives.under.run_id, begun=False))
        lives.go("two-1")
        lives.until_zenml({"one": "failed", "two": "completed"})
        assert "has ended as its run has" in refused(lives)
        ran = lab.read(Ran(tmp_path), lives.under.run_id)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.states == {"one": "Failed", "two": "Completed"}
    assert not lab.running(ran)


@slow
@pytest.mark.parametrize("mode", ["cold", "pipeline"])
def test_a_run_that_failed_without_its_flow_and_of_which_nothing_runs_any_more(
    lab: Lab, tmp_path: Path, mode: str
) -> None:
    """ZenML calls a step running whose sandbox was lost meanwhile: nobody would wait for its end but in vain."""
    with Lives(lab, tmp_path) as lives:
        one_fails_alone(lives, mode)
        strike(lab, "killed", lives.under.ran.traces("two")[0])
        left = lab.read(Ran(tmp_path), lives.under.run_id, begun=False)
        assert eventually(lambda: not lab.running(left), bool)
        assert "has ended as its run has" in refused(lives)
        ran = lab.read(Ran(tmp_path), lives.under.run_id)
    assert (ran.status, ran.flow_run.state.name) == ("failed", "Failed")
    assert ran.steps == {"one": "failed", "two": "failed"}
    assert set(ran.states.values()) == {"Failed"}
    assert not lab.running(ran)


@slow  # a server counts as busy for more than a minute before it is asked anew
def test_zenmls_server_is_killed_over_the_first_question_of_a_flow(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZenML's client alone would ask it for eight minutes, in which the flow is taken for dead."""

    def is_the_flow_s(method: str, path: str) -> bool:
        return "/pipeline_snapshots/" in path and flow_run_of(lives).run_count == 2

    with Lives(lab, tmp_path) as lives, Forwarder(lab.zenml.url, busy=is_the_flow_s) as forwarder:
        lives.begin("alone", "modal", COLD)
        lives.until("only")
        lives.kill()
        with monkeypatch.context() as changed:
            changed.setenv("ZENML_STORE_URL", forwarder.url)
            lives.go_on()
        lives.until_signed(FIRST_SIGN_SECONDS)
        assert forwarder.left_open
        lives.go("only-1")
        ran = lives.end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]


@slow  # tests/integration/test_bad_input.py has a token and a limit that are missing at a first start
@pytest.mark.parametrize("what", ["the token", "the limit", "a library"])
def test_a_resume_that_can_not_begin_ends_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Something is missing that it needs; once it is there the next one goes on, though Modal is away just then."""
    limit = f"limit-{tmp_path.name}"
    with get_client(sync_client=True) as client, Lives(lab, tmp_path) as lives:
        client.upsert_global_concurrency_limit_by_name(limit, 1)
        lives.begin("alone", "modal", {**COLD, "concurrency_limit": limit} if what == "the limit" else COLD)
        lives.until("only")
        lives.kill()
        with monkeypatch.context() as changed:
            if what == "a library":
                client.set_flow_run_state(lives.under.flow_run_id, Crashed(), force=True)
                retry_where_a_library_is_broken(lives.under.flow_run_id, tmp_path)
                lives.number += 1
            elif what == "the limit":
                client.delete_global_concurrency_limit_by_name(limit)
            else:
                changed.setenv("MODAL_TOKEN_SECRET", "as-of-somebody-else")
            if what != "a library":
                lives.go_on()
                lives.end_of_process()
        state = flow_run_of(lives).state
        assert state.is_crashed(), lives.log[-6000:]
        assert f"`modal-prefect resume {lives.under.flow_run_id}` goes on with it" in state.message
        assert asked(Client().get_pipeline_run(lives.under.run_id)) == ("running", {"only": "running"})
        client.upsert_global_concurrency_limit_by_name(limit, 1)
        lab.modal.unavailable(3)
        lives.go_on()
        lives.until_signed()
        lives.go("only-1")
        ran = lives.end()
        states = {state.name for state in client.read_flow_run_states(lives.under.flow_run_id)}
        client.delete_global_concurrency_limit_by_name(limit)
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert ran.flow_run.run_count == lives.number == 3
    assert len(ran.traces("only")) == 1
    assert output(lab, ran, "only") == said("only", 1)
    if what != "a library":  # Prefect's own retry schedules it
        assert "Scheduled" not in states, "what goes on here is no worker's"
    assert not lab.running(ran)


def retry_where_a_library_is_broken(flow_run_id: UUID, folder: Path) -> None:
    """As after an upgrade that was cut off: the flow's own module can be imported, and what it needs can't."""
    (folder / "tenacity.py").write_text("raise ImportError('broken by an upgrade')")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    retry = ["flow-run", "retry", str(flow_run_id), "--entrypoint", FLOW_ENTRYPOINT]
    prefect = str(Path(sys.executable).parent / "prefect")
    subprocess.run([prefect, *retry], env=environment, cwd=PROJECT, check=False, capture_output=True, timeout=120)


def task_runs_of(lives: Lives) -> dict[str, str]:
    """What Prefect says of the task runs, by name."""
    with get_client(sync_client=True) as client:
        chosen = FlowRunFilter(id={"any_": [lives.under.flow_run_id]})  # type: ignore[arg-type]
        found = client.read_task_runs(flow_run_filter=chosen)
    return {task_run.name: str(task_run.state_name) for task_run in found}


def flow_run_of(lives: Lives) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(lives.under.flow_run_id)


def crashes_of(lives: Lives) -> list[str]:
    """What the Crashed states of the flow run said; each is followed by the one in which it is gone on with."""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(lives.under.flow_run_id)
    states.sort(key=lambda state: state.timestamp)
    after = [following.name for state, following in pairwise(states) if state.is_crashed()]
    assert set(after) <= {"Pending"}
    return [str(state.message) for state in states if state.is_crashed()]


@slow
@pytest.mark.parametrize(
    ("who", "place", "mode"),
    [
        ("a worker", "process", "cold"),
        ("a worker", "modal", "pipeline"),
        ("prefect, which takes a cancel back", "process", "cold"),
        ("prefect", "modal", "warm"),
    ],
)
def test_somebody_else_goes_on(lab: Lab, tmp_path: Path, who: str, place: str, mode: str) -> None:
    """A worker, whose flow's process was killed; and `prefect flow-run retry` where there is no deployment.

    That goes on also with a flow run that is Cancelled, if ZenML's run isn't over.
    """
    with Lives(lab, tmp_path) as lives, ExitStack() as at_the_end:
        if who == "a worker":
            pool = f"crash-{uuid4().hex[:6]}"
            make_pool(pool)
            worker = Worker(pool, tmp_path / "worker").start()
            at_the_end.callback(worker.stop)
            lives.begin("three", place, MODES[mode], configuration={"work_pool": pool, "synchronous": False})
        else:
            lives.begin("three", place, MODES[mode])
        lives.until_logged(f"first 1 before {LINES - 1}")
        if who == "a worker":
            lives.end_of_process()
            _, pid, _ = signer(last_sign(Client().get_pipeline_run(lives.under.run_id)))[0].rsplit("/", 2)
            os.kill(int(pid), signal.SIGKILL)
            assert eventually(lambda: flow_run_of(lives).state.is_crashed(), bool, 60)
            call([COMMAND, "resume", str(lives.under.run_id)], "waits for a worker")
            if place == "modal":  # which keeps the output of a sandbox for a moment only after its end
                lives.number += 1
                lives.until_signed()
        else:
            lives.kill()
            with get_client(sync_client=True) as client:
                state: State[Any] = Crashed() if who == "prefect" else Cancelled()
                client.set_flow_run_state(lives.under.flow_run_id, state, force=True)
        lives.go("first-1", "second-1", "third-1")
        if who == "a worker":
            ended = eventually(lambda: flow_run_of(lives).state, lambda state: state.is_final(), 300)
            assert ended.is_completed(), f"{ended}: {worker.log.read_text()[-6000:]}"
        else:
            retry = ["prefect", "flow-run", "retry", str(lives.under.flow_run_id), "--entrypoint", FLOW_ENTRYPOINT]
            call([str(Path(sys.executable).parent / retry[0]), *retry[1:]], "completed successfully")
        ran = lab.read(Ran(tmp_path), lives.under.run_id)
    assert (ran.status, ran.flow_run.state.name, ran.flow_run.run_count) == ("completed", "Completed", 2)
    assert {step: len(ran.traces(step)) for step in ran.steps} == {"first": 1, "second": 1, "third": 1}
    first = [line for line in output(lab, ran, "three" if mode == "pipeline" else "first") if line.startswith("first")]
    assert first == said("first", 1)
    assert len(lab.sandboxes(ran)) == (1 if place == "modal" else 0)
    assert not lab.running(ran)


def call(command: list[str], expected: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{STACK_CODE}:{PROJECT}"}
    shown = subprocess.run(command, env=environment, cwd=PROJECT, check=False, capture_output=True, text=True)
    assert expected in " ".join((shown.stdout + shown.stderr).split()), shown.stdout + shown.stderr
    assert shown.returncode == 0


@slow
def test_prefect_never_heard_of_whose_run_a_flow_run_is(lab: Lab, tmp_path: Path) -> None:
    """As where it was away just as a deployment's flow began: ZenML knows the flow run of each of its runs."""
    with Lives(lab, tmp_path) as lives:
        lives.begin("beside", "process", WARM, steps=["one"])
        lives.until("one")
        lives.kill()
        with get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(lives.under.flow_run_id)
            client.update_flow_run(
                flow_run.id, parameters={"snapshot_id": flow_run.parameters["snapshot_id"]}, tags=["somebody's"]
            )
        lives.go("one-1")
        ran = lives.go_on(by_flow_run=True).end()
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed"), lives.log[-6000:]
    assert len(ran.traces("one")) == 1

"""Bad input on registered stacks, end to end: one clear error, and nothing of the run has begun.

What is wrong stands as data in :mod:`tests.unit.bad_inputs`, whose unit tests feed it to settings and translation.
Here it goes the way a user sends it: through ZenML's client, a registered component, a pipeline that is called.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.integration.lab import Lab, Ran, eventually
from tests.integration.refusals import Counts, message_of, names_all, nothing_begins
from tests.unit import bad_inputs
from tests.unit.bad_inputs import BadInput

PER_STEP = {"execution_mode": "per_step"}


def step_updates(case: BadInput) -> dict[str, dict[str, Any]]:
    """The steps' own configuration as ``pipeline.with_options(steps=...)`` takes it."""
    updates: dict[str, dict[str, Any]] = {}
    for name, given in case.steps.items():
        settings = {
            **({"orchestrator": dict(given.settings)} if given.settings else {}),
            **({"resources": dict(given.resources)} if given.resources else {}),
        }
        update = {**({"settings": settings} if settings else {}), **({"retry": given.retry} if given.retry else {})}
        if update:
            updates[name] = update
    return updates


def call(lab: Lab, case: BadInput, place: str) -> Ran:
    import inputs

    resources = {"resources": dict(case.resources)} if case.resources else {}
    options = {
        **({"steps": updates} if (updates := step_updates(case)) else {}),
        **({"retry": dict(case.retry)} if case.retry else {}),
    }
    pipeline = inputs.dynamic if case.dynamic else inputs.given
    pipeline = pipeline.with_options(settings=resources) if resources else pipeline
    if case.dynamic:
        return lab.run(pipeline, lab.stack(place), settings=case.settings)
    return lab.run(pipeline, lab.stack(place), settings=case.settings, options=options, names=list(case.steps))


FIRST_OF_FIELD = {next(iter(case.settings)): case.id for case in reversed(bad_inputs.SETTINGS)}


def first_of_its_kind(case: BadInput) -> bool:
    """Once a setting is known to be refused end to end, its other wrong values are the unit tests' matter."""
    if case in bad_inputs.SETTINGS:
        return case.id in FIRST_OF_FIELD.values()
    return case not in bad_inputs.RUN_LEVEL_ON_A_STEP[1:]


RUNNABLE = [
    pytest.param(case, id=case.id, marks=marks)
    for case in [*bad_inputs.SETTINGS, *bad_inputs.RUN_LEVEL_ON_A_STEP, *bad_inputs.STEPS, *bad_inputs.PIPELINE_MODE]
    if case.zenml_takes and case.images is None
    for marks in [[] if first_of_its_kind(case) else [pytest.mark.slow]]
]


def test_enough_of_them_are_run_each_time() -> None:
    assert sum(not case.marks for case in RUNNABLE) >= 40


@pytest.mark.parametrize("case", RUNNABLE)
def test_a_pipeline_is_refused(lab: Lab, case: BadInput) -> None:
    with nothing_begins(lab):
        message = message_of(call(lab, case, "modal"))
    names_all(message, *case.says)


@pytest.mark.parametrize("case", bad_inputs.COMPONENTS, ids=lambda case: case.id)
def test_a_component_is_not_registered(lab: Lab, case: BadInput) -> None:
    from zenml.client import Client

    lab.stack("modal")  # registers the flavour
    before = Client().list_stack_components(size=1).total
    with nothing_begins(lab), pytest.raises(Exception) as caught:
        register(case.component)
    names_all(str(caught.value), *case.says)
    assert bad_inputs.TOKEN not in str(caught.value)
    assert Client().list_stack_components(size=1).total == before


def register(configuration: Mapping[str, Any]) -> None:
    from zenml.client import Client
    from zenml.enums import StackComponentType

    name = f"wrong-{uuid4().hex[:6]}"
    Client().create_stack_component(name, "modal-prefect", StackComponentType.ORCHESTRATOR, dict(configuration))


def test_an_unknown_key_of_a_component(lab: Lab) -> None:
    """ZenML refuses it itself, before this package sees it."""
    lab.stack("modal")
    with nothing_begins(lab), pytest.raises(ValueError, match=r"max_paralelism.*modal-prefect"):
        register({"max_paralelism": 4})


def test_a_component_is_not_updated_to_nonsense(lab: Lab) -> None:
    from zenml.client import Client
    from zenml.enums import StackComponentType

    client = Client()
    name = client.get_stack(lab.stack("modal", timeout=77)).components[StackComponentType.ORCHESTRATOR][0].name
    with nothing_begins(lab), pytest.raises(ValueError) as caught:
        client.update_stack_component(name, StackComponentType.ORCHESTRATOR, configuration={"timeout": "0"})
    names_all(str(caught.value), "timeout", "'0'", "at least 1")


@dataclass(frozen=True)
class Unserved:
    """What is a good value and still can't be done: not yet, or not as Prefect is. ``says`` names field, value, fix."""

    id: str
    says: tuple[str, ...]
    component: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    step: Mapping[str, Any] | None = None


ON_A_WORKER = "`prefect deploy --all`"
UNSERVED = [
    Unserved(
        "work_pool unknown",
        ("work_pool='nowhere'", "no such work pool", "`prefect work-pool"),
        component={"work_pool": "nowhere"},
    ),
    Unserved(
        "concurrency_limit of a component",
        ("concurrency_limit='gpus'", "no global concurrency limit", "prefect gcl create gpus"),
        component={"concurrency_limit": "gpus"},
    ),
    Unserved(
        "concurrency_limit of a pipeline",
        ("concurrency_limit='gpus'", "no global concurrency limit", "prefect gcl create gpus"),
        settings={"concurrency_limit": "gpus"},
    ),
    Unserved(
        "concurrency_limit of a step",
        ("concurrency_limit='gpus'", "no global concurrency limit", "prefect gcl create gpus"),
        settings=PER_STEP,
        step={"concurrency_limit": "gpus"},
    ),
    Unserved(
        "synchronous=False without a work pool",
        ("synchronous=False", "work pool", "synchronous=True", ON_A_WORKER),
        settings={"synchronous": False},
    ),
    Unserved(
        "synchronous=False of a component without a work pool",
        ("synchronous=False", "work pool", "synchronous=True", ON_A_WORKER),
        component={"synchronous": False},
    ),
    Unserved(
        "a work queue without a work pool",
        ("work_queue='fast'", "work pool", "Leave work_queue out"),
        settings={"work_queue": "fast"},
    ),
    Unserved(
        "job variables without a work pool",
        ("job_variables={'image': 'x'}", "work pool", "Leave job_variables out"),
        settings={"job_variables": {"image": "x"}},
    ),
]


@pytest.mark.parametrize("place", [pytest.param("modal", marks=pytest.mark.slow), "process"])
@pytest.mark.parametrize("case", UNSERVED, ids=lambda case: case.id)
def test_what_can_not_be_done_is_refused(lab: Lab, case: Unserved, place: str) -> None:
    import inputs

    options = {"steps": {"train": {"settings": {"orchestrator": dict(case.step)}}}} if case.step else {}
    with nothing_begins(lab):
        stack = lab.stack(place, **(case.component or {}))
        ran = lab.run(inputs.given, stack, settings=case.settings, options=options, names=["train"])
        message = message_of(ran)
    names_all(message, *case.says)


def test_a_schedule_without_a_work_pool(lab: Lab) -> None:
    import inputs
    from zenml.config.schedule import Schedule

    with nothing_begins(lab):
        daily = {"schedule": Schedule(cron_expression="0 0 * * *")}
        message = message_of(lab.run(inputs.given, lab.stack("process"), options=daily, names=["train"]))
    names_all(message, "work_pool=None", "schedule", "Set `work_pool`", ON_A_WORKER)


PIPELINES = [
    ("empty", ("steps",)),
    ("commanded", ("Command step `shell`", "step operator")),
    ("operated", ("'nowhere'", "step operator")),
]


@pytest.mark.parametrize(("name", "says"), PIPELINES, ids=[name for name, _ in PIPELINES])
def test_what_ZenML_refuses_by_itself(lab: Lab, name: str, says: tuple[str, ...]) -> None:
    import inputs

    with nothing_begins(lab):
        message = message_of(lab.run(getattr(inputs, name), lab.stack("process")))
    names_all(message, *says)


MODES = ["pipeline", pytest.param("per_step", marks=pytest.mark.slow)]
"""The same code looks names up for both, and sends the same requests for sandboxes."""


class TestOnlyModalKnows:
    """A secret or a volume costs a look-up, so it is an error before anything starts."""

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"secrets": ["hf", "nothing"]}, ("secret 'nothing'", "modal secret create")),
            ({"volumes": {"/data": "nothing"}}, ("volume 'nothing'", "modal volume create")),
            ({"modal_environment": "nowhere"}, ("environment 'nowhere'",)),
            ({"modal_environment": "nowhere", "secrets": ["hf"]}, ("environment 'nowhere'",)),
        ],
        ids=["secret", "volume", "environment", "environment of a secret"],
    )
    @pytest.mark.parametrize("mode", MODES)
    def test_names(self, lab: Lab, mode: str, settings: Mapping[str, Any], says: tuple[str, ...]) -> None:
        import inputs

        with nothing_begins(lab):
            asked = {"execution_mode": mode, **settings}
            message = message_of(lab.run(inputs.given, lab.stack("modal"), settings=asked, names=["train"]))
        names_all(message, *says)

    def test_a_secret_of_one_step(self, lab: Lab) -> None:
        import inputs

        steps = {"steps": {"train": {"settings": {"orchestrator": {"secrets": ["nothing"]}}}}}
        with nothing_begins(lab):
            ran = lab.run(
                inputs.given, lab.stack("modal"), settings=PER_STEP, options=steps, names=["prepare", "train"]
            )
            message = message_of(ran)
        names_all(message, "secret 'nothing'", "modal secret create")

    def test_a_wrong_token(self, lab: Lab) -> None:
        import inputs

        stack = lab.stack("modal", token_id="ak-wrong", token_secret="as-wrong")
        with nothing_begins(lab):
            message = message_of(lab.run(inputs.given, stack, names=["train"]))
        names_all(message, "token", "modal setup", "token_id and token_secret")
        assert "as-wrong" not in message

    def test_no_token(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        import inputs

        monkeypatch.delenv("MODAL_TOKEN_ID")
        monkeypatch.delenv("MODAL_TOKEN_SECRET")
        with nothing_begins(lab):
            message = message_of(lab.run(inputs.given, lab.stack("modal"), names=["train"]))
        names_all(message, "modal setup", "MODAL_TOKEN_ID", "token_id and token_secret")

    @pytest.mark.parametrize("mode", MODES)
    def test_domains_alone_where_zenml_is_not_at_https(self, lab: Lab, mode: str) -> None:
        """The tests' own server is one of http, as many a user's is."""
        import inputs

        domains = ["zenml.example.com"]
        asked = {"execution_mode": mode, "outbound_domain_allowlist": domains}
        with nothing_begins(lab):
            message = message_of(lab.run(inputs.given, lab.stack("modal"), settings=asked, names=["train"]))
        names_all(message, "outbound_domain_allowlist", repr(domains), "http://127.0.0.1", "outbound_cidr_allowlist")

    @pytest.mark.parametrize("mode", MODES)
    def test_an_unknown_image_fails_once(self, lab: Lab, mode: str) -> None:
        """Whether it can be pulled shows in its build, which is too dear to be tried before the run."""
        import inputs

        before = lab.modal.stats()
        wanted = "registry.example.com/forgotten:1"
        asked = {"execution_mode": mode}
        ran = lab.run(inputs.given, lab.stack("modal"), settings=asked, image=wanted, names=["train"])
        names_all(message_of(ran), wanted, "manifest unknown")
        after = lab.modal.stats()
        assert (after.created - before.created, after.image_builds - before.image_builds) == (0, 1)
        assert ran.flow_run.state.name == "Failed"
        assert set(ran.states.values()) == {"Failed"}

    @pytest.mark.parametrize("mode", MODES)
    def test_an_unknown_gpu_fails_once(self, lab: Lab, mode: str) -> None:
        import inputs

        before = lab.modal.stats().calls.get("SandboxCreate", 0)
        asked = {"execution_mode": mode, "gpu": "A1000"}
        ran = lab.run(inputs.given, lab.stack("modal"), settings=asked, names=["train"])
        names_all(message_of(ran), "A1000", "GPU type")
        assert lab.modal.stats().calls.get("SandboxCreate", 0) == before + 1
        assert ran.flow_run.state.name == "Failed"
        assert not lab.sandboxes(ran)


class TestPrefectsAPI:
    def test_nobody_answers(self, lab: Lab) -> None:
        import inputs

        with socket.socket() as closed:  # bound, so that nobody else gets the port, and not listening
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/api"
            with nothing_begins(lab):
                stack = lab.stack("process", prefect_api_url=url)
                message = message_of(lab.run(inputs.given, stack, names=["train"]))
        names_all(message, url, "prefect config view", "`prefect_api_url`")

    def test_somebody_else_answers(self, lab: Lab) -> None:
        import inputs
        from zenml.client import Client

        url = f"{Client().zen_store.url}/not-prefect"
        with nothing_begins(lab):
            stack = lab.stack("process", prefect_api_url=url)
            message = message_of(lab.run(inputs.given, stack, names=["train"]))
        names_all(message, url, "prefect config view", "`prefect_api_url`")


@pytest.fixture(scope="module")
def finished(lab: Lab) -> Ran:
    import inputs

    ran = lab.run(inputs.given, lab.stack("process"), names=["train"])
    assert ran.status == "completed"
    return ran


def call_flow(**parameters: UUID | None) -> Any:
    """What a deployment does: run the generic flow. Returns the state it ends in."""
    from bridge.flow import zenml_pipeline

    return zenml_pipeline(**parameters, return_state=True)  # type: ignore[call-overload]


@contextmanager
def only_a_failed_flow_run(lab: Lab) -> Iterator[None]:
    """The flow run is there already when a parameter of it is found to be wrong; nothing else comes of it."""
    from zenml.client import Client

    before, runs = Counts.now(lab), Client().list_pipeline_runs(size=1).total
    yield
    after = Counts.now(lab)
    assert (after.sandboxes, after.step_runs) == (before.sandboxes, before.step_runs)
    assert after.flow_runs == before.flow_runs + 1
    assert Client().list_pipeline_runs(size=1).total == runs


class TestParametersOfTheFlow:
    def test_no_such_snapshot(self, lab: Lab) -> None:
        wrong = uuid4()
        with only_a_failed_flow_run(lab):
            state = call_flow(snapshot_id=wrong)
        assert state.name == "Failed"
        names_all(state.message, f"snapshot_id={wrong}", "zenml pipeline snapshot list")

    def test_the_run(self, lab: Lab, finished: Ran) -> None:
        import inputs

        lab.activate(lab.stack("process"))
        inputs.given.prepare("/nowhere", names=["train"])
        other = inputs.given.create_snapshot(name=f"other-{uuid4().hex[:6]}").id
        own, done, missing = finished.run.snapshot.id, finished.run.id, uuid4()
        cases = [
            (own, missing, (f"run_id={missing}", "no such run", "Leave `run_id` out")),
            (other, done, (f"run_id={done}", f"belongs to snapshot {own}", "Leave `run_id` out")),
            (own, done, (f"run_id={done}", str(finished.flow_run.id), "prefect flow-run retry")),
        ]
        for snapshot, run_id, says in cases:
            with only_a_failed_flow_run(lab):
                state = call_flow(snapshot_id=snapshot, run_id=run_id)
            assert state.name == "Failed"
            names_all(state.message, *says)

    def test_a_run_that_has_completed(self, lab: Lab, finished: Ran) -> None:
        """Its own flow run is started once more, as after a crash at the very end: there is nothing left to do."""
        from prefect.client.orchestration import get_client
        from prefect.states import Pending

        from bridge.flow import zenml_pipeline
        from bridge.upstream_prefect import run_existing_flow_run

        before = Counts.now(lab)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(finished.flow_run.id, Pending(), force=True)
            flow_run = client.read_flow_run(finished.flow_run.id)
        flow = zenml_pipeline.with_options(name="given")
        state = run_existing_flow_run(flow, flow_run, dict(flow_run.parameters))
        assert state.name == "Completed"
        assert Counts.now(lab) == before

    def test_a_snapshot_of_another_orchestrator(self, lab: Lab) -> None:
        import inputs

        lab.activate("default")
        inputs.given.prepare("/nowhere", names=["train"])
        snapshot = inputs.given.create_snapshot(name=f"native-{uuid4().hex[:6]}")
        with only_a_failed_flow_run(lab):
            state = call_flow(snapshot_id=snapshot.id)
        assert state.name == "Failed"
        names_all(state.message, f"snapshot_id={snapshot.id}", "flavour `local`", "`modal-prefect`")

    def test_a_run_that_another_flow_run_works_on(self, lab: Lab, tmp_path: Path) -> None:
        import shapes
        from zenml.client import Client

        ran: list[Ran] = []
        worker = threading.Thread(
            target=lambda: ran.append(lab.run(shapes.telling, lab.stack("process"), settings=PER_STEP, into=tmp_path))
        )
        worker.start()
        try:
            assert eventually((tmp_path / "hung.jsonl").exists, bool, 90)
            run = Client().list_pipeline_runs(size=1, sort_by="desc:created", hydrate=True).items[0]
            with only_a_failed_flow_run(lab):
                state = call_flow(snapshot_id=run.snapshot.id, run_id=run.id)
        finally:
            (tmp_path / "go").touch()
            worker.join()
        assert state.name == "Failed"
        names_all(state.message, f"run_id={run.id}", run.orchestrator_run_id, "Leave `run_id` out")
        assert (ran[0].error, ran[0].status, ran[0].flow_run.state.name) == (None, "completed", "Completed")


@pytest.mark.slow  # tests/unit/test_names.py has the names
def test_names_that_nobody_takes_are_no_bad_input(lab: Lab) -> None:
    """They become a slug with a hash, and different names never meet."""
    import inputs
    from prefect.client.orchestration import get_client

    stack, steps = lab.stack("modal"), ["x/y", "x%y"]
    first = lab.run(inputs.with_slash, stack, settings={**PER_STEP, "warm": False}, names=steps)
    second = lab.run(inputs.with_percent, stack, settings=PER_STEP, names=steps[:1])
    for ran in (first, second):
        assert ran.error is None
        assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert set(first.steps) == set(steps)
    with get_client(sync_client=True) as client:
        flows = [client.read_flow(ran.flow_run.flow_id).name for ran in (first, second)]
    apps = [{box.app for box in lab.sandboxes(ran)} for ran in (first, second)]
    assert len(set(flows)) == 2
    assert all(name.startswith("a-b-") for name in flows)
    assert [len(found) for found in apps] == [1, 1]
    assert apps[0] != apps[1]
    assert len(lab.sandboxes_by_step(first)) == len(first.task_runs) == 2

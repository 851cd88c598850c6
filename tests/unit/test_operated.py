"""What a step asks of its step operator, and the plan that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from zenml.config.step_configurations import StepConfiguration

from bridge.errors import InvalidSettings, NotTranslatable
from bridge.flow_run.outcome import End, Reported, SandboxEnd, StepRecord, Verdict, judge
from bridge.plan import Gpu, Plan, Resources
from bridge.settings import ModalPrefectStepOperatorConfig, ModalPrefectStepOperatorSettings
from bridge.step_operators.operated import check_steps, plan_of, shared_plan, warm_not_used, wishes_of
from bridge.warming.kinds import kind_of
from tests.unit.snapshots import StepInput, snapshot


def config(settings: Mapping[str, Any], **resources: Any) -> StepConfiguration:
    given = {**settings, **({"resources": resources} if resources else {})}
    return StepConfiguration(name="train", step_operator="mine", settings=given)


def wishes(settings: Mapping[str, Any], component: Mapping[str, Any] | None = None, **resources: Any) -> Any:
    of_component = ModalPrefectStepOperatorConfig(**(component or {}))
    return wishes_of("train", config(settings, **resources), of_component, "mine")


def test_the_step_wins_and_none_never_overrides() -> None:
    component = {"gpu": "T4", "timeout": 60, "tags": {"team": "a", "cost": "1"}, "region": "eu"}
    own = ModalPrefectStepOperatorSettings(gpu=["A100", "H100"], region=None, tags={"cost": "7"})
    found = wishes({"step_operator": own}, component, gpu_count=2, memory="1GiB")
    assert (found.settings.timeout, found.settings.region) == (60, "eu")
    assert found.settings.tags == {"team": "a", "cost": "7"}
    assert found.resources == Resources(None, 1024, Gpu(("A100", "H100"), 2))
    assert found.warnings == ()


def test_a_step_opts_out_of_the_gpu() -> None:
    assert wishes({}, {"gpu": "T4"}, gpu_count=0).resources.gpu is None


def test_settings_under_two_keys_that_disagree() -> None:
    keys = ("step_operator:mine", "step_operator.modal-prefect")
    given = {key: ModalPrefectStepOperatorSettings(timeout=10 + len(key)) for key in keys}
    with pytest.raises(NotTranslatable, match="name the same step operator and say different things"):
        wishes(given)


def test_settings_of_another_operator_are_left_alone() -> None:
    other = ModalPrefectStepOperatorSettings(timeout=7)
    assert wishes({"step_operator:other": other}).settings.timeout == 86400


def test_domains_alone_where_zenml_is_not_at_https() -> None:
    own = {"step_operator": ModalPrefectStepOperatorSettings(outbound_domain_allowlist=["zenml.example.com"])}
    python, command = config(own), config(own).model_copy(update={"command": ["nvidia-smi"]})
    modal = ModalPrefectStepOperatorConfig()
    with pytest.raises(NotTranslatable, match=r"outbound_domain_allowlist of step train.*http://zenml\.example\.com"):
        check_steps({"train": python}, modal, "mine", "http://zenml.example.com")
    check_steps({"train": command}, modal, "mine", "http://zenml.example.com")  # which tells ZenML nothing
    check_steps({"train": python}, modal, "mine", "https://zenml.example.com")
    check_steps({"train": python}, modal, "mine")
    check_steps({"train": python}, ModalPrefectStepOperatorConfig(runner="process"), "mine", "http://127.0.0.1")


def test_the_wrong_class_for_a_gpu_is_not_named() -> None:
    with pytest.raises(InvalidSettings, match=r"gpu_count of step train=2.*ModalPrefectStepOperatorSettings\(gpu="):
        wishes({}, gpu_count=2)


def test_a_command_needs_no_network_and_a_function_does() -> None:
    blocked = {"step_operator": ModalPrefectStepOperatorSettings(block_network=True)}
    with pytest.raises(NotTranslatable, match=r"block_network of step train=True.*outbound_cidr_allowlist"):
        wishes(blocked)
    assert wishes(blocked, {"runner": "process"}).warnings[0].startswith("block_network: not used")
    command = config(blocked).model_copy(update={"command": ["true"]})
    component = ModalPrefectStepOperatorConfig()
    found = wishes_of("train", command, component, "mine")
    made = snapshot({"train": StepInput()})
    assert plan_of("train", command, made, found, None).steps[0].sandbox.block_network


def test_what_a_local_process_cannot_honour_is_said() -> None:
    found = wishes({"step_operator": ModalPrefectStepOperatorSettings(gpu="T4", cloud="aws")}, {"runner": "process"})
    assert [warning.partition(":")[0] for warning in found.warnings] == ["gpu", "cloud"]


RUNNING = StepRecord(Reported.RUNNING, "id", 1)


@pytest.mark.parametrize(
    ("end", "stop", "verdict"),
    [
        (SandboxEnd(End.EXITED, 0), False, Verdict.SUCCEEDED),
        (SandboxEnd(End.EXITED, 3), False, Verdict.FAILED),
        (SandboxEnd(End.EVICTED), False, Verdict.LOST),
        (SandboxEnd(End.EXITED, 0), True, Verdict.STOPPED),
    ],
)
def test_a_command_that_tells_nobody_how_it_ended(end: SandboxEnd, stop: bool, verdict: Verdict) -> None:
    assert judge(end, RUNNING, stop_requested=stop, reports=False).verdict is verdict


ON_OPERATOR = StepInput(step_operator="mine")


def shared(steps: Mapping[str, StepInput], component: Mapping[str, Any] | None = None, **options: Any) -> Plan | None:
    of_component = ModalPrefectStepOperatorConfig(**(component or {}))
    return shared_plan(snapshot(steps, **options), of_component, "mine", lambda step: "registry/ml:1")


def with_settings(**settings: Any) -> StepInput:
    return replace(ON_OPERATOR, other_settings={"step_operator": settings})


def test_steps_that_share_are_those_of_one_kind_on_this_operator() -> None:
    steps = {
        "here": StepInput(),
        "one": ON_OPERATOR,
        "other": StepInput(step_operator="other"),
        "big": replace(ON_OPERATOR, resources={"memory": "2GiB"}),
        "cold": with_settings(warm=False),
        "command": replace(ON_OPERATOR, command=("true",)),
        "writes": with_settings(volumes={"/out": "out"}),
        "writes too": with_settings(volumes={"/out": "out"}),
        "two": with_settings(timeout=60),
    }
    plan = shared(steps)
    assert plan is not None
    assert [step.name for step in plan.steps] == ["one", "two"]
    assert plan.warm
    assert len({kind_of(step.sandbox) for step in plan.steps}) == 1
    assert all(step.caching for step in plan.steps), "no sandbox is started before a step is called"
    assert shared({"one": ON_OPERATOR, "here": StepInput()}) is None, "nobody to share with"
    assert shared(steps, {"warm": False}) is None


def test_an_idle_sandbox_is_kept_for_as_long_as_the_most_patient_step_says() -> None:
    plan = shared({"one": ON_OPERATOR, "two": with_settings(warm_idle_timeout=7)}, {"warm_idle_timeout": 5})
    assert plan is not None
    assert plan.warm_idle_timeout == 7


def test_what_comes_before_a_step_that_shares_is_known_however_far_above() -> None:
    steps = {
        "one": ON_OPERATOR,
        "here": StepInput(upstream=["one"]),
        "two": replace(ON_OPERATOR, upstream=["here"]),
        "three": replace(ON_OPERATOR, upstream=["two"]),
        "beside": ON_OPERATOR,
    }
    plan = shared(steps)
    assert plan is not None
    assert plan.upstream == {"one": (), "two": ("one",), "three": ("one", "two"), "beside": ()}


def test_who_asked_for_a_warm_sandbox_that_there_is_not_is_told() -> None:
    asked = {"step_operator": ModalPrefectStepOperatorSettings(warm=True)}
    function, command = config(asked), config(asked).model_copy(update={"command": ["true"]})
    settings = wishes(asked).settings
    assert warm_not_used("train", function, settings, dynamic=False) == ()
    (said,) = warm_not_used("train", command, settings, dynamic=False)
    assert said == "warm of step train: not used, a command step has a sandbox of its own."
    (said,) = warm_not_used("train", function, settings, dynamic=True)
    assert "warm of step train: not used, in a dynamic pipeline" in said
    assert warm_not_used("train", command, wishes({}).settings, dynamic=True) == (), "nobody asked"

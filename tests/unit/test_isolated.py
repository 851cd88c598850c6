"""A dynamic pipeline's orchestration as a plan, and its isolated steps, which are known only once they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from zenml.enums import ExecutionStatus

from bridge import names
from bridge.dynamic_pipelines.asks import answer
from bridge.dynamic_pipelines.isolated import Layer, check_inline, image_of, plan_of, unused_of_child, wishes_of
from bridge.errors import InvalidSettings, RunNotPossible
from bridge.plan import FailureMode, Gpu, Mode, Resources, RunnerKind
from bridge.planning.layers import ComponentSettings
from bridge.planning.translate import translate
from tests.unit.snapshots import NAME, SNAPSHOT_ID, StepInput, snapshot


def translated(
    settings: Mapping[str, Any], component: Mapping[str, Any] | None = None, runner: RunnerKind = "modal", **rest: Any
) -> Any:
    dynamic = snapshot({"template": StepInput()}, settings=settings, dynamic=True, **rest)
    return translate(
        dynamic, component=ComponentSettings(component or {}, runner), component_name=NAME, stack_name="prod"
    )


def test_the_orchestration() -> None:
    plan = translated(
        {"timeout": 600, "max_parallelism": 3, "secrets": ["hf"]},
        resources={"cpu_count": 1, "memory": "2GiB"},
        execution_mode="fail_fast",
        images={"orchestrator": "ml:1", "template.orchestrator": "ml:2"},
    ).plan
    assert (plan.mode, plan.failure_mode, plan.steps) == (Mode.DYNAMIC, FailureMode.FAIL_FAST, ())
    assert plan.command == ("dynamic", "--snapshot-id", str(SNAPSHOT_ID), "--max-parallelism", "3")
    assert (plan.sandbox.image, plan.sandbox.timeout, plan.sandbox.secrets) == ("ml:1", 600, ("hf",))
    assert plan.sandbox.resources == Resources(1.0, 2048)
    assert str(plan) == (
        "training: dynamic, fail_fast, at most 3 at once [1 cpu, 2048 MiB]; its steps are known as it runs"
    )


def test_what_a_dynamic_pipeline_does_not_use_is_said() -> None:
    warnings = translated({"execution_mode": "per_step"}, {"warm": True}, "process").warnings
    assert warnings == (
        "execution_mode: not used, the pipeline is dynamic.",
        "warm: not used, the pipeline is dynamic.",
    )


def called(step: StepInput, pipeline: Mapping[str, Any] | None = None, **rest: Any) -> tuple[Any, Layer, Any]:
    """A step as ZenML has compiled it when it is called: its configuration holds the pipeline's too."""
    made = snapshot({"train": step}, settings=pipeline or {}, dynamic=True, **rest)
    layer = Layer(ComponentSettings({"region": "us-east"}), NAME, made.pipeline_configuration)
    return made.step_configurations["train"].config, layer, made


def test_an_isolated_step() -> None:
    step = StepInput(settings={"gpu": "T4", "tags": {"a": "b"}}, resources={"gpu_count": 2, "memory": "1GiB"})
    config, layer, made = called(step, {"timeout": 60, "concurrency_limit": "gpus"}, images={"orchestrator": "ml:1"})
    wishes = wishes_of("train", config, layer)
    plan = plan_of("train", config, made, wishes, image_of("train", config, made))
    (only,) = plan.steps
    assert only.command == ("operated", "--snapshot-id", str(SNAPSHOT_ID), "--step", "train")
    assert only.sandbox.resources == Resources(None, 1024, Gpu(("T4",), 2))
    assert (only.sandbox.timeout, only.sandbox.region, only.sandbox.tags) == (60, ("us-east",), (("a", "b"),))
    assert (only.sandbox.image, only.concurrency_limit) == ("ml:1", "gpus")
    assert (only.retry.retries, only.reports) == (0, True)


BAD: dict[str, tuple[StepInput, tuple[str, ...]]] = {
    "GPUs of no type": (StepInput(resources={"gpu_count": 2}), ("gpu_count of step train", "2", "Name it")),
    "a setting of the run": (
        StepInput(settings={"max_parallelism": 2}),
        ("max_parallelism of step train", "2", "take it off"),
    ),
    "another Modal environment": (
        StepInput(settings={"modal_environment": "dev"}),
        ("modal_environment of step train", "'dev'", "Set modal_environment on the pipeline"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_isolated_step_is_refused(case: str) -> None:
    step, says = BAD[case]
    config, layer, _ = called(step, {"gpu": None})
    with pytest.raises(InvalidSettings) as caught:
        wishes_of("train", config, layer)
    assert all(part in str(caught.value) for part in says)


@pytest.mark.parametrize("field", ["gpu", "timeout", "secrets", "concurrency_limit", "outbound_cidr_allowlist"])
def test_an_inline_step_has_what_its_pipeline_has(field: str) -> None:
    value: Any = {
        "gpu": "T4",
        "timeout": 5,
        "secrets": ["hf"],
        "concurrency_limit": "one",
        "outbound_cidr_allowlist": ["10.0.0.0/8"],
    }[field]
    config, layer, _ = called(StepInput(settings={"tags": {"a": "b"}}), {field: value})
    check_inline("train", config, layer)
    config, layer, _ = called(StepInput(settings={field: value}))
    with pytest.raises(InvalidSettings) as caught:
        check_inline("train", config, layer)
    assert f"{field} of step train" in str(caught.value)
    assert '@step(runtime="isolated")' in str(caught.value)


def called_by(
    root: Mapping[str, Any], child: Mapping[str, Any], step: Mapping[str, Any] | None = None
) -> tuple[Any, Layer]:
    """A step that a child pipeline calls: ZenML hands the child's settings to it, and nothing of the root's."""
    run = snapshot({}, settings=root, dynamic=True)
    config, layer, made = called(StepInput(settings=step or {}), child, name="inner")
    return config, replace(layer, root=run.pipeline_configuration, child=made.pipeline_configuration)


OF_CHILDREN: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "a GPU": ({}, {"gpu": "T4"}, {}, ("gpu of child pipeline inner='T4'", "step train runs inline")),
    "another GPU": ({"gpu": "H100"}, {"gpu": "T4"}, {}, ("gpu of child pipeline inner='T4'",)),
    "a step's GPU": ({}, {}, {"gpu": "T4"}, ("gpu of step train='T4'",)),
    "a step's other GPU": ({}, {"gpu": "H100"}, {"gpu": "T4"}, ("gpu of step train='T4'",)),
    "a secret": ({}, {"secrets": ["hf"]}, {}, ("secrets of child pipeline inner", "set secrets on the pipeline")),
    "one volume more": ({"volumes": {"/a": "a"}}, {"volumes": {"/b": "b"}}, {}, ("volumes of child pipeline inner",)),
    "less time": ({}, {"timeout": 60}, {}, ("timeout of child pipeline inner=60",)),
}
"""By what a child asks for: settings of the root, of the child and of its step, and what is said of them."""


@pytest.mark.parametrize("case", OF_CHILDREN)
def test_an_inline_step_of_a_child_has_what_the_root_has(case: str) -> None:
    root, child, step, says = OF_CHILDREN[case]
    config, layer = called_by(root, child, step)
    with pytest.raises(InvalidSettings) as caught:
        check_inline("train", config, layer)
    assert all(part in str(caught.value) for part in says), str(caught.value)
    wishes_of("train", config, layer)  # what it may have in a sandbox of its own
    check_inline("train", *called_by({**root, **child, **step}, child, step))
    check_inline("train", *called_by({**root, **child, **step}, {}))


@pytest.mark.parametrize(
    ("field", "value"), [("max_parallelism", 2), ("orphan_timeout", 60), ("modal_environment", "dev")]
)
def test_what_the_root_has_for_its_children_too(field: str, value: Any) -> None:
    for check in (wishes_of, check_inline):
        check("train", *called_by({field: value}, {field: value}))
        for child, step, whose in (({field: value}, {}, "child pipeline inner"), ({}, {field: value}, "step train")):
            with pytest.raises(InvalidSettings) as caught:
                check("train", *called_by({}, child, step))
            assert f"{field} of {whose}={value!r}" in str(caught.value)
            assert f"Set {field} on the pipeline that is run" in str(caught.value)
            assert f"take it off {whose}" in str(caught.value)


def local(called: tuple[Any, Layer]) -> tuple[Any, Layer]:
    """The same on local processes."""
    config, layer = called
    return config, replace(layer, component=replace(layer.component, runner="process"))


UNUSED_OF_CHILDREN: dict[str, tuple[Any, str]] = {
    "warm": (False, "the pipeline is dynamic"),
    "warm_idle_timeout": (5, "the pipeline is dynamic"),
    "execution_mode": ("per_step", "the pipeline is dynamic"),
    "synchronous": (False, "that of the pipeline that is run holds"),
    "create_rate": (2.0, "that of the pipeline that is run holds"),
    "work_queue": ("high", "that of the pipeline that is run holds"),
    "job_variables": ({"env": {}}, "that of the pipeline that is run holds"),
}


@pytest.mark.parametrize("field", UNUSED_OF_CHILDREN)
def test_what_changes_nothing_for_a_child_is_said(field: str) -> None:
    value, why = UNUSED_OF_CHILDREN[field]
    config, layer = called_by({}, {field: value})
    for check in (wishes_of, check_inline):
        check("train", config, layer)
        check("train", *called_by({}, {field: value}, {field: value}))
        with pytest.raises(InvalidSettings, match=f"{field} of step train"):
            check("train", *called_by({}, {}, {field: value}))
    assert unused_of_child(layer) == (f"{field} of child pipeline inner: not used, {why}.",)
    assert not unused_of_child(called_by({field: value}, {field: value})[1])
    assert not unused_of_child(called(StepInput(), {field: value})[1]), "that isn't a child"


@pytest.mark.parametrize(
    ("field", "value"), [("gpu", "T4"), ("secrets", ["hf"]), ("modal_environment", "dev"), ("region", "eu")]
)
def test_a_child_on_this_machine_may_name_what_only_modal_has(field: str, value: Any) -> None:
    config, layer = local(called_by({}, {field: value}))
    wishes_of("train", config, layer)
    check_inline("train", config, layer)
    assert unused_of_child(layer) == (
        f"{field} of child pipeline inner: not used, runner='process' runs the steps on this machine.",
    )
    with pytest.raises(InvalidSettings, match=f"{field} of step train"):
        check_inline("train", *local(called_by({}, {}, {field: value})))


@pytest.mark.parametrize(
    ("field", "value"), [("max_parallelism", 2), ("orphan_timeout", 60), ("timeout", 60), ("concurrency_limit", "one")]
)
def test_a_child_on_this_machine_has_what_processes_can_have(field: str, value: Any) -> None:
    config, layer = local(called_by({}, {field: value}))
    assert not unused_of_child(layer)
    with pytest.raises(InvalidSettings, match=f"{field} of child pipeline inner"):
        check_inline("train", config, layer)


def test_what_an_isolated_step_of_a_child_has() -> None:
    root = {"modal_environment": "dev", "max_parallelism": 2, "gpu": "H100", "timeout": 600, "secrets": ["hf"]}
    settings = wishes_of("train", *called_by(root, {"timeout": 60}, {"gpu": "T4"})).settings
    assert (settings.modal_environment, settings.max_parallelism) == ("dev", 2), "the root's, for all"
    assert (settings.timeout, settings.gpu, settings.secrets) == (60, "T4", []), "the child's own"
    assert settings.region == "us-east", "the component's"


def test_no_image() -> None:
    config, _, made = called(StepInput(), images=None)
    with pytest.raises(RunNotPossible, match="No image was built for step train"):
        image_of("train", config, made)


def test_zenml_is_told_nothing_else_than_it_understands() -> None:
    ends = {ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.STOPPED}
    understood = {ExecutionStatus.PROVISIONING, ExecutionStatus.RUNNING, *ends}
    told = {status: answer(status) for status in ExecutionStatus}
    assert set(told.values()) == understood
    assert all(told[status] is status for status in understood)
    # One that waits for a retry has come to its end: the retry is another step run.
    over = {status for status in ExecutionStatus if status.is_finished} | {ExecutionStatus.RETRYING}
    assert {status for status in told if told[status] in ends} == over
    assert {status for status in over if told[status] is ExecutionStatus.COMPLETED} == {
        status for status in ExecutionStatus if status.is_successful
    }
    assert {status for status in over if told[status] is ExecutionStatus.STOPPED} == {
        ExecutionStatus.STOPPED,
        ExecutionStatus.CANCELLED,
    }
    assert told[ExecutionStatus.QUEUED] not in ends


def test_a_place_in_a_resource_pool_is_zenmls_to_find() -> None:
    """Before it asks for the sandbox: nothing is to be said of what names it."""
    in_pool = StepInput(resources={"cpu_count": 1, "gpu_class": "big", "resources": "slots"})
    config, layer, _ = called(in_pool)
    assert wishes_of("train", config, layer).warnings == ()
    dynamic = snapshot({"template": in_pool}, resources={"gpu_class": "big"}, dynamic=True)
    assert translate(dynamic, component=ComponentSettings({}), component_name=NAME, stack_name="prod").warnings == ()


def test_each_step_run_is_a_task_run_and_a_sandbox_of_its_own() -> None:
    flow_run, step_runs = str(uuid4()), [str(uuid4()) for _ in range(2)]
    tasks = {names.isolated_task_run_id(flow_run, step_run) for step_run in step_runs}
    assert len({*tasks, names.task_run_id(flow_run, None), names.task_run_id(flow_run, step_runs[0])}) == 4
    assert len({names.isolated_name(one) for one in step_runs} | {names.operated_name(one) for one in step_runs}) == 4

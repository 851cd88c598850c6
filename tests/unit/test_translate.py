"""Snapshot and settings become a plan: what wins, what is shared, what is copied and what never is."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zenml.config import DockerSettings
from zenml.config.build_configuration import BuildConfiguration
from zenml.config.retry_config import StepRetryConfig

from bridge.errors import NotTranslatable
from bridge.plan import FailureMode, Gpu, Mode, Plan, Resources, RetryPolicy, VolumeMount
from bridge.planning.layers import ComponentSettings
from bridge.planning.one_sandbox import refuse_images
from bridge.planning.translate import LONGEST_DELAY, Translation, ordered, retry_delays, translate
from tests.bench.translate import chain, seconds
from tests.unit.snapshots import NAME, SNAPSHOT_ID, StepInput, snapshot

PER_STEP = {"execution_mode": "per_step"}


def translated(
    steps: Mapping[str, StepInput],
    settings: Mapping[str, Any] = PER_STEP,
    *,
    component: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Translation:
    return translate(
        snapshot(steps, settings=settings, **rest),
        component=ComponentSettings(component or {}),
        component_name=NAME,
        stack_name="prod",
    )


def plan(steps: Mapping[str, StepInput], settings: Mapping[str, Any] = PER_STEP, **rest: Any) -> Plan:
    return translated(steps, settings, **rest).plan


def test_a_plan() -> None:
    result = plan(
        {
            "load": StepInput(resources={"cpu_count": 0.5, "memory": "512MB"}),
            "train": StepInput(
                upstream=["load"],
                settings={"gpu": ["A100", "H100"], "timeout": 600},
                resources={"gpu_count": 2},
                retry={"max_retries": 2, "delay": 10, "backoff": 3},
            ),
        },
        {"execution_mode": "per_step", "max_parallelism": 3, "tags": {"team": "ml"}},
        execution_mode="fail_fast",
        name="churn",
    )
    assert (result.pipeline, result.stack, result.snapshot_id) == ("churn", "prod", str(SNAPSHOT_ID))
    assert (result.mode, result.failure_mode, result.max_parallelism) == (Mode.PER_STEP, FailureMode.FAIL_FAST, 3)
    load, train = result.steps
    assert load.sandbox.resources == Resources(0.5, 489)  # 512 * 10**6 bytes are 488.3 MiB
    assert train.upstream == ("load",)
    assert train.command == ("step", "--snapshot-id", str(SNAPSHOT_ID), "--step", "train")
    assert train.sandbox.resources.gpu == Gpu(("A100", "H100"), 2)
    assert train.sandbox.timeout == 600
    assert train.sandbox.tags == (("team", "ml"),)
    assert train.retry == RetryPolicy((10, 30))
    assert str(result) == (
        "churn: 2 steps, per_step, fail_fast, at most 3 at once\n"
        "  load [0.5 cpu, 489 MiB]\n"
        "  train after load [2 x A100 or H100, 2 retries]"
    )
    assert result == plan(
        {
            "load": StepInput(resources={"cpu_count": 0.5, "memory": "512MB"}),
            "train": StepInput(
                upstream=["load"],
                settings={"timeout": 600, "gpu": ["A100", "H100"]},
                resources={"gpu_count": 2},
                retry={"backoff": 3, "max_retries": 2, "delay": 10},
            ),
        },
        {"tags": {"team": "ml"}, "max_parallelism": 3, "execution_mode": "per_step"},
        execution_mode="fail_fast",
        name="churn",
    )


@pytest.mark.parametrize(
    ("component", "pipeline", "step", "timeout"),
    [
        (None, None, None, 86400),
        (50, None, None, 50),
        (50, 60, None, 60),
        (50, None, 70, 70),
        (50, 60, 70, 70),
        (None, 60, None, 60),
    ],
)
def test_the_nearer_setting_wins(component: int | None, pipeline: int | None, step: int | None, timeout: int) -> None:
    """With None for what isn't said: it never overrides."""
    result = plan(
        {"train": StepInput(settings={"timeout": step})},
        {**PER_STEP, "timeout": pipeline},
        component={"timeout": component},
    )
    assert result.steps[0].sandbox.timeout == timeout


def test_mappings_merge_and_lists_replace() -> None:
    result = plan(
        {"train": StepInput(settings={"tags": {"b": "step"}, "volumes": {"/s": "s"}, "secrets": ["step"]})},
        {**PER_STEP, "tags": {"b": "pipeline", "c": "pipeline"}, "secrets": ["pipeline"]},
        component={"tags": {"a": "component", "c": "component"}, "volumes": {"/c": "c"}, "secrets": ["component"]},
    )
    sandbox = result.steps[0].sandbox
    assert sandbox.tags == (("a", "component"), ("b", "step"), ("c", "pipeline"))
    assert sandbox.volumes == (VolumeMount("/c", "c"), VolumeMount("/s", "s"))
    assert sandbox.secrets == ("step",)


def test_every_setting_of_a_step_arrives() -> None:
    said = {
        "gpu": "T4",
        "cloud": "aws",
        "region": ["eu", "us-east"],
        "modal_environment": "dev",
        "timeout": 5,
        "infrastructure_retries": 7,
        "capacity_timeout": 9,
        "secrets": ["hf"],
        "volumes": {"/d": "data:ro"},
        "outbound_cidr_allowlist": ["10.0.0.0/8"],
        "outbound_domain_allowlist": ["*.example.com"],
        "tags": {"a": "b"},
        "concurrency_limit": "gpus",
        "stream_logs": False,
    }
    step = plan({"train": StepInput(settings=said)}).steps[0]
    assert (step.concurrency_limit, step.stream_logs, step.infrastructure_retries) == ("gpus", False, 7)
    sandbox = step.sandbox
    assert sandbox.resources.gpu == Gpu(("T4",), 1)
    assert (sandbox.cloud, sandbox.region, sandbox.modal_environment) == ("aws", ("eu", "us-east"), "dev")
    assert (sandbox.timeout, sandbox.capacity_timeout) == (5, 9)
    assert (sandbox.secrets, sandbox.volumes, sandbox.tags) == (
        ("hf",),
        (VolumeMount("/d", "data", read_only=True),),
        (("a", "b"),),
    )
    assert (sandbox.outbound_cidrs, sandbox.outbound_domains) == (("10.0.0.0/8",), ("*.example.com",))


def test_every_setting_of_a_run_arrives() -> None:
    result = translated(
        {"train": StepInput()},
        {
            "execution_mode": "per_step",
            "max_parallelism": 2,
            "warm": False,
            "warm_idle_timeout": 0,
            "orphan_timeout": 60,
            "create_rate": 0.5,
            "infrastructure_retries": 0,
            "concurrency_limit": "gpus",
            "stream_logs": False,
            "synchronous": False,
            "work_queue": "fast",
            "job_variables": {"image": "x"},
        },
    )
    made = result.plan
    assert (made.mode, made.max_parallelism, made.warm, made.warm_idle_timeout) == (Mode.PER_STEP, 2, False, 0)
    assert (made.orphan_timeout, made.create_rate, made.infrastructure_retries) == (60, 0.5, 0)
    assert (made.concurrency_limit, made.stream_logs) == ("gpus", False)
    assert not result.settings.synchronous
    assert (result.settings.work_queue, result.settings.job_variables) == ("fast", {"image": "x"})


def test_no_token_comes_near_a_plan() -> None:
    result = translated(
        {"train": StepInput()},
        component={"token_id": "ak-1", "token_secret": "as-secret", "prefect_api_key": "pnu-1"},
    )
    for told in ("ak-1", "as-secret", "pnu-1"):
        assert told not in repr(result)


@pytest.mark.parametrize("key", [f"orchestrator:{NAME}", "orchestrator.modal-prefect", "orchestrator"])
def test_keys_under_which_settings_stand(key: str) -> None:
    result = plan(
        {"train": StepInput(other_settings={key: {"timeout": 9}})},
        {},
        other_settings={key: {"execution_mode": "per_step", "cloud": "aws"}},
    )
    assert (result.mode, result.steps[0].sandbox.timeout, result.steps[0].sandbox.cloud) == (Mode.PER_STEP, 9, "aws")


def test_settings_of_another_orchestrator_are_named() -> None:
    """A snapshot made before the component was renamed."""
    result = translated({"train": StepInput()}, {}, other_settings={"orchestrator:old": {"timeout": 9}})
    assert result.warnings == ("settings['orchestrator:old']: not used, the orchestrator is 'orchestrator'.",)


def test_two_keys_that_disagree_are_refused() -> None:
    both = {"orchestrator": {"timeout": 9}, "orchestrator.modal-prefect": {"timeout": 8}}
    with pytest.raises(ValueError, match=r"settings of the pipeline=\['orchestrator', 'orch.*Keep one of them"):
        plan({"train": StepInput()}, {}, other_settings=both)
    same = {"orchestrator": {"timeout": 9}, "orchestrator.modal-prefect": {"timeout": 9}}
    assert plan({"train": StepInput()}, {}, other_settings=same).sandbox.timeout == 9


# Resources


@pytest.mark.parametrize(
    ("memory", "mebibytes"),
    [
        ("1MiB", 1),
        ("1GiB", 1024),
        ("1GB", 954),
        ("1B", 1),
        ("1KB", 1),
        ("1025KiB", 2),
        ("1TiB", 1 << 20),
        ("16GB", 15259),
    ],
)
def test_memory_is_rounded_up(memory: str, mebibytes: int) -> None:
    assert plan({"s": StepInput(resources={"memory": memory})}).steps[0].sandbox.resources.memory == mebibytes


@pytest.mark.parametrize(
    ("pipeline_gpu", "step_gpu", "count", "gpu"),
    [
        (None, None, None, None),
        (None, None, 0, None),
        ("A100", None, None, Gpu(("A100",))),
        ("A100", None, 0, None),
        ("A100", None, 4, Gpu(("A100",), 4)),
        ("A100", "T4", None, Gpu(("T4",))),
        (["A100", "H100"], None, 2, Gpu(("A100", "H100"), 2)),
        (None, ["T4"], 1, Gpu(("T4",))),
    ],
)
def test_gpus(pipeline_gpu: object, step_gpu: object, count: int | None, gpu: Gpu | None) -> None:
    step = StepInput(settings={"gpu": step_gpu}, resources={"gpu_count": count})
    assert plan({"s": step}, {**PER_STEP, "gpu": pipeline_gpu}).steps[0].sandbox.resources.gpu == gpu


def test_a_step_inherits_the_pipelines_resources() -> None:
    result = plan({"s": StepInput(resources={"memory": "1GiB"})}, resources={"cpu_count": 2, "memory": "9GiB"})
    assert result.steps[0].sandbox.resources == Resources(2, 1024)


@pytest.mark.parametrize("operator", [True, "remote"])
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_a_sandbox_that_waits_for_a_step_operator_has_no_resources(operator: bool | str, mode: str) -> None:
    """What the step asks for is meant for the operator's machine (facts/zenml.md, trap 23)."""
    wants = {"gpu_count": 2, "cpu_count": 16, "memory": "64GiB"}
    steps = {
        "plain": StepInput(resources={"cpu_count": 1, "gpu_count": 0}),
        "operated": StepInput(resources=wants, step_operator=operator),
    }
    result = plan(steps, {"execution_mode": mode, "gpu": "A100"})
    assert result.step("operated").step_operator == operator
    assert result.step("operated").sandbox.resources == Resources()
    assert result.step("plain").step_operator is False
    if mode == "pipeline":
        assert result.sandbox.resources == Resources(1)


def test_a_pipeline_of_step_operators_only_asks_for_nothing() -> None:
    steps = {"operated": StepInput(step_operator=True)}
    assert plan(steps, {}, resources={"gpu_count": 2, "cpu_count": 8}).sandbox.resources == Resources()


def test_resource_pools_are_named_as_not_used() -> None:
    warnings = translated({"s": StepInput(resources={"gpu_class": "big"})}).warnings
    why = "not used, ZenML has resource pools for dynamic pipelines only"
    assert warnings == (f"ResourceSettings.gpu_class of step s: {why}.",)


def test_what_scales_deployed_pipelines_means_nothing() -> None:
    """ZenML says so of these fields; ``memory`` beside them counts."""
    scaled = {"min_replicas": 1, "max_replicas": 3, "autoscaling_metric": "cpu", "max_concurrency": 5}
    result = translated({"s": StepInput(resources={**scaled, "autoscaling_target": 70.0, "memory": "1GiB"})})
    assert result == translated({"s": StepInput(resources={"memory": "1GiB"})})


# Pipeline mode


def test_the_largest_of_each_counts_in_pipeline_mode() -> None:
    steps = {
        "a": StepInput(resources={"cpu_count": 4, "memory": "1GiB", "gpu_count": 0}),
        "b": StepInput(resources={"cpu_count": 1, "memory": "3GiB", "gpu_count": 2}),
        "c": StepInput(),
    }
    result = translated(steps, {"gpu": "T4", "max_parallelism": 2, "timeout": 99})
    assert result.plan.mode is Mode.PIPELINE
    assert result.plan.sandbox.resources == Resources(4, 3072, Gpu(("T4",), 2))
    assert result.plan.sandbox.timeout == 99
    assert result.plan.command == (
        *("pipeline", "--snapshot-id", str(SNAPSHOT_ID), "--max-parallelism", "2"),
        *("--cpu", "4.0", "--memory", "3072", "--gpus", "2"),
    )
    assert [step.sandbox.resources.gpu for step in result.plan.steps] == [None, Gpu(("T4",), 2), Gpu(("T4",))]
    assert result.warnings == ()


def test_the_pipelines_own_resources_count_in_pipeline_mode() -> None:
    steps = {"a": StepInput(resources={"cpu_count": 4, "memory": "1GiB"}), "b": StepInput()}
    result = translated(steps, {}, resources={"cpu_count": 2})
    assert result.plan.sandbox.resources == Resources(2, 1024)
    assert result.warnings == (
        "cpu=2 cores: step a asked for more than the pipeline's own ResourceSettings, which count in pipeline mode.",
    )


@pytest.mark.parametrize(("count", "gpu"), [(1, Gpu(("T4",), 1)), (0, None)])
def test_so_does_its_number_of_gpus(count: int, gpu: Gpu | None) -> None:
    steps = {"a": StepInput(resources={"gpu_count": 2}), "b": StepInput()}
    result = translated(steps, {"gpu": "T4"}, resources={"gpu_count": count})
    assert result.plan.sandbox.resources.gpu == gpu
    (said, *_) = result.warnings
    assert said.startswith(f"gpu_count={count}: step")
    assert "a" in said


def test_a_fraction_of_a_core_reaches_the_command() -> None:
    result = plan({"a": StepInput(resources={"cpu_count": 1234567.125})}, {})
    assert result.command[-2] == "--cpu"
    assert float(result.command[-1]) == 1234567.125


@pytest.mark.parametrize(
    ("own", "pipeline_gpu", "steps", "gpu"),
    [
        ({"gpu_count": 3}, "A100", {"a": StepInput(resources={"gpu_count": 1})}, Gpu(("A100",), 3)),
        ({"gpu_count": 1}, "A100", {"a": StepInput(resources={"gpu_count": 0})}, Gpu(("A100",), 1)),
        ({}, "A100", {"a": StepInput(resources={"gpu_count": 0})}, None),
        ({}, None, {"a": StepInput(settings={"gpu": "T4"}), "b": StepInput()}, Gpu(("T4",), 1)),
        ({"gpu_count": 0}, "A100", {"a": StepInput()}, None),
    ],
)
def test_gpus_in_pipeline_mode(
    own: Mapping[str, Any], pipeline_gpu: str | None, steps: Mapping[str, StepInput], gpu: Gpu | None
) -> None:
    assert plan(steps, {"gpu": pipeline_gpu}, resources=own).sandbox.resources.gpu == gpu


def test_what_a_step_says_like_its_pipeline_is_fine_in_pipeline_mode() -> None:
    result = translated({"a": StepInput(settings={"timeout": 9})}, {"timeout": 9})
    assert result.plan.sandbox.timeout == 9


@pytest.mark.parametrize(
    ("field", "value"),
    [("tags", {"a": "b"}), ("infrastructure_retries", 9), ("capacity_timeout", 9), ("stream_logs", False)],
)
def test_tuning_on_a_step_is_named_as_not_used_in_pipeline_mode(field: str, value: object) -> None:
    result = translated({"a": StepInput(settings={field: value})}, {})
    assert result.warnings == (f"{field} of step a={value!r}: not used, in pipeline mode that of the pipeline holds.",)
    assert translated({"a": StepInput(settings={field: value})}).warnings == ()


# Images


def test_images_of_the_build() -> None:
    result = plan(
        {"a": StepInput(), "b": StepInput()},
        images={"orchestrator": "r/all@sha256:1", "b.orchestrator": "r/b@sha256:2", "a.step_operator": "r/c"},
    )
    assert [step.sandbox.image for step in result.steps] == ["r/all@sha256:1", "r/b@sha256:2"]


def test_one_image_in_pipeline_mode() -> None:
    steps = {"a": StepInput(), "b": StepInput()}
    images = {"a.orchestrator": "r/x@sha256:1", "b.orchestrator": "r/x@sha256:1"}
    assert plan(steps, {}, images=images).sandbox.image == "r/x@sha256:1"
    assert plan(steps, {}).sandbox.image is None


def test_the_image_of_pipeline_mode_is_that_of_the_steps_that_run_in_it() -> None:
    """A step operator has its own; of a step that a replay skips none is built."""
    steps = {"a": StepInput(step_operator=True), "b": StepInput(), "c": StepInput()}
    images = {"a.orchestrator": "r/a", "orchestrator": "r/all"}
    assert plan(steps, {}, images=images).sandbox.image == "r/all"
    assert plan({"a": StepInput(step_operator=True)}, {}, images=images).sandbox.image == "r/a"
    assert plan(steps, {}, images={"c.orchestrator": "r/c"}, steps_to_skip=["b"]).sandbox.image == "r/c"


@pytest.mark.parametrize(
    ("of_pipeline", "of_step", "differing"),
    [
        (
            {"requirements": ["six"]},
            {"requirements": ["torch"], "apt_packages": ["git"]},
            "['apt_packages', 'requirements']",
        ),
        ({}, {"parent_image": "r/b", "skip_build": True}, "['parent_image', 'skip_build']"),
        ({"parent_image": "r/a", "skip_build": True}, {"parent_image": "r/b", "skip_build": True}, "['parent_image']"),
        ({"parent_image": "r/a", "skip_build": True}, {"parent_image": "r/a", "skip_build": True, "user": "me"}, None),
        ({}, {"prevent_build_reuse": True}, None),
    ],
)
def test_several_images_in_pipeline_mode_are_refused_before_they_are_built(
    of_pipeline: dict[str, Any], of_step: dict[str, Any], differing: str | None
) -> None:
    key = "orchestrator"
    builds = [
        BuildConfiguration(key=key, settings=DockerSettings(**of_pipeline)),
        BuildConfiguration(key=key, settings=DockerSettings(**of_step), step_name="b"),
    ]
    refuse_images(plan({"a": StepInput(), "b": StepInput()}), builds)
    refuse_images(plan({"a": StepInput(), "b": StepInput(step_operator=True)}, {}), builds)
    in_one_sandbox = plan({"a": StepInput(), "b": StepInput()}, {})
    if differing is None:
        refuse_images(in_one_sandbox, builds)
    else:
        with pytest.raises(
            NotTranslatable, match=f"(?s)DockerSettings of step b={re.escape(differing)}.*step a.*per_step"
        ):
            refuse_images(in_one_sandbox, builds)


# Caching and retries


@pytest.mark.parametrize(
    ("pipeline", "step", "caching"),
    [(None, None, True), (False, None, False), (False, True, True), (True, False, False), (None, False, False)],
)
def test_caching(pipeline: bool | None, step: bool | None, caching: bool) -> None:
    assert plan({"s": StepInput(enable_cache=step)}, enable_cache=pipeline).steps[0].caching is caching


def zenml_waits(retry: StepRetryConfig) -> list[float]:
    """What ZenML's loop sleeps: zenml/execution/step/utils.py, ``delay *= backoff`` after each wait."""
    waits, delay = [], float(retry.delay)
    while len(waits) < retry.max_retries:
        waits.append(delay)
        delay *= retry.backoff
    return waits


@given(st.integers(1, 50), st.integers(0, 20), st.integers(0, 3))
def test_retry_delays_are_those_of_ZenML(retries: int, delay: int, backoff: int) -> None:
    retry = StepRetryConfig(max_retries=retries, delay=delay, backoff=backoff)
    delays = retry_delays(retry)
    assert len(delays) == retries
    assert [min(wait, LONGEST_DELAY + 1) for wait in delays] == [
        min(wait, LONGEST_DELAY + 1) for wait in zenml_waits(retry)
    ]


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        (None, ()),
        ({"max_retries": 1}, (0,)),
        ({"max_retries": 3, "delay": 10}, (10, 0, 0)),
        ({"max_retries": 3, "delay": 10, "backoff": 1}, (10, 10, 10)),
        ({"max_retries": 3, "delay": 10, "backoff": 2}, (10, 20, 40)),
    ],
)
def test_retry_delays(retry: Mapping[str, int] | None, delays: tuple[int, ...]) -> None:
    assert retry_delays(None if retry is None else StepRetryConfig(**retry)) == delays
    assert plan({"s": StepInput(retry=retry)}).steps[0].retry.delays == delays
    assert plan({"s": StepInput()}, retry=retry).steps[0].retry.delays == delays


def test_as_many_retries_as_prefect_takes() -> None:
    assert plan({"s": StepInput(retry={"max_retries": 50})}).steps[0].retry.retries == 50
    assert plan({"s": StepInput(retry={"max_retries": 51})}, {}).steps[0].retry.retries == 51


# The graph


def test_the_order_stays_where_it_can() -> None:
    assert ordered({"b": [], "c": ["b"], "a": [], "d": ["a"]}, "p") == ["b", "c", "a", "d"]


def test_upstream_comes_before_downstream() -> None:
    order = ordered({"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}, "p")
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order.index("a") < min(order.index("b"), order.index("c"))
    assert order[-1] == "d"


def test_an_upstream_step_named_twice_is_one() -> None:
    assert plan({"a": StepInput(), "b": StepInput(upstream=["a", "a"])}).step("b").upstream == ("a",)


def test_a_step_that_a_replay_skips_is_waited_for_by_none() -> None:
    """For its build ZenML takes such steps out of the snapshot, but leaves their names in those after them."""
    steps = {"b": StepInput(upstream=["a"]), "c": StepInput(upstream=["a", "b"])}
    result = plan(steps, steps_to_skip=["a"])
    assert [(step.name, step.upstream) for step in result.steps] == [("b", ()), ("c", ("b",))]
    whole = plan({"a": StepInput(), **steps}, steps_to_skip=["a"])
    assert whole.step("c").upstream == ("a", "b")


def test_names_may_be_anything() -> None:
    names = ["train/model & co", "größe 100%", "-leading", "<b>", "x" * 300]
    result = plan({name: StepInput(upstream=names[:index]) for index, name in enumerate(names)})
    assert [step.name for step in result.steps] == names
    assert result.steps[0].command[-1] == names[0]


def test_planning_asks_nobody_and_opens_nothing() -> None:
    """Python itself tells of every file, process and connection: none while a plan is made."""
    stored = chain(20, kinds=20)
    given = {"component": ComponentSettings({}), "component_name": NAME, "stack_name": "prod"}
    expected = translate(stored, **given)  # imports what it imports at its first call
    told: list[str] = []
    listening = True

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event.partition(".")[0] in ("open", "socket", "subprocess", "os", "sqlite3", "import"):
            told.append(event)

    sys.addaudithook(listen)  # which stays for good
    try:
        again = translate(stored, **given)
    finally:
        listening = False
    assert told == []
    assert again == expected


@pytest.mark.slow  # the ratio is below; a second is a matter of the machine, and of what else it does
@pytest.mark.parametrize("kinds", [20, 10_000])
def test_ten_thousand_steps_are_planned_in_a_second(kinds: int) -> None:
    assert seconds(chain(10_000, kinds=kinds)) < 1


def test_time_grows_linearly() -> None:
    small, large = seconds(chain(300, kinds=10_000)), seconds(chain(3_000, kinds=10_000))
    assert large < 20 * small

"""What means nothing to local processes: each field that was said is named, once, and none that wasn't."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from zenml.config import DockerSettings

from bridge.planning import ignored
from bridge.planning.layers import ComponentSettings
from bridge.planning.translate import translate
from bridge.settings import ModalPrefectOrchestratorConfig, SandboxSettings
from tests.unit.snapshots import NAME, StepInput, snapshot

MACHINE = {"gpu": "T4", "cloud": "aws", "region": "eu", "modal_environment": "staging", "capacity_timeout": 9}
ADDED = {"secrets": ["hf"], "volumes": {"/models": "models"}}
NETWORK = {"outbound_cidr_allowlist": ["10.0.0.0/8"], "outbound_domain_allowlist": ["x.org"]}
RESOURCES = {"cpu_count": 2, "memory": "1GiB", "gpu_count": 2}
USED = {"timeout": 9, "tags": {"a": "b"}, "stream_logs": False, "infrastructure_retries": 9}


def said(
    steps: Mapping[str, StepInput], settings: Mapping[str, Any], component: Mapping[str, Any], **more: Any
) -> tuple[str, ...]:
    config = ModalPrefectOrchestratorConfig(**component)
    made = snapshot(steps, settings=settings, **more)
    plan = translate(made, component=ComponentSettings.of(config), component_name=NAME, stack_name="s").plan
    return ignored.of_run(made, plan, config)


def fields(lines: tuple[str, ...]) -> list[str]:
    assert all(line.endswith("not used, runner='process' runs the steps on this machine.") for line in lines)
    return [line.partition(":")[0] for line in lines]


PROCESS = {"runner": "process"}


def test_each_field_is_named_once_however_many_steps_say_it() -> None:
    settings = {"execution_mode": "per_step", "create_rate": 9, **USED, **MACHINE, **ADDED, **NETWORK}
    steps = {name: StepInput(resources=RESOURCES) for name in ("a", "b")}
    component = {**PROCESS, "image_source": "modal", "build_secrets": ["index"], "token_id": "x", "token_secret": "y"}
    docker = {"docker": DockerSettings(requirements=["six"], environment={"A": "b"})}
    named = fields(said(steps, settings, component, other_settings=docker))
    assert sorted(named) == sorted(
        [
            *ignored.OF_COMPONENT,
            *(f"ResourceSettings.{field}" for field in RESOURCES),
            *(*MACHINE, *ADDED, *NETWORK, "create_rate"),
            "DockerSettings.requirements",
            "DockerSettings.environment",
        ]
    )


def test_no_setting_of_a_sandbox_is_forgotten() -> None:
    """A new one is either used by local processes too, or named."""
    assert set(SandboxSettings.model_fields) == {*USED, *MACHINE, *ADDED, *NETWORK, "block_network"}


def test_nothing_is_said_where_nothing_was_asked_for() -> None:
    steps = {"a": StepInput(other_settings={"docker": DockerSettings()}), "b": StepInput()}
    assert said(steps, {"execution_mode": "per_step", **USED}, PROCESS) == ()
    assert said(steps, {"execution_mode": "per_step", **MACHINE}, {"runner": "modal"}) == ()


def test_a_step_alone() -> None:
    steps = {"a": StepInput(settings={"gpu": "T4"}, resources={"gpu_count": 0}), "b": StepInput(settings=NETWORK)}
    assert fields(said(steps, {"execution_mode": "per_step"}, PROCESS)) == list(NETWORK)


def test_the_images_of_a_step_operator_are_made_of_its_docker_settings() -> None:
    docker = {"docker": DockerSettings(requirements=["six"])}
    steps = {"a": StepInput(step_operator="k8s", other_settings=docker)}
    assert said(steps, {"execution_mode": "per_step"}, PROCESS, other_settings=docker) == ()
    assert fields(said({**steps, "b": StepInput()}, {"execution_mode": "per_step"}, PROCESS, other_settings=docker))


def test_what_steps_of_one_process_ask_for_says_which_run_side_by_side() -> None:
    lines = said({"a": StepInput(resources={"cpu_count": 2})}, {}, PROCESS)
    assert len(lines) == 1
    assert lines[0].startswith("ResourceSettings.cpu_count: limits nothing, ")


@pytest.mark.parametrize("settings", [{"gpu": "T4"}, {"cloud": "aws"}])
def test_a_dynamic_pipeline(settings: Mapping[str, str]) -> None:
    assert fields(said({}, settings, PROCESS, dynamic=True)) == list(settings)

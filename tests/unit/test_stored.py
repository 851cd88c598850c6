"""A snapshot that went through ZenML's command line values, compiler and store becomes the plan it should."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from zenml.models import PipelineSnapshotResponse

from bridge.plan import Plan
from bridge.planning.layers import ComponentSettings
from bridge.planning.translate import translate
from tests.unit.snapshots import NAME, StepInput, snapshot
from tests.unit.stored_snapshot import COMPONENT

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The stored snapshot as the store hands it out, in JSON."""
    home = tmp_path_factory.mktemp("zenml")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZENML")}
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("stored_snapshot.py"))],
        env={
            **environment,
            "HOME": str(home),
            "PYTHONPATH": str(REPOSITORY),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_CONFIG_PATH": str(home / "config"),
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()[-1]


def plan(of: PipelineSnapshotResponse) -> Plan:
    translated = translate(of, component=ComponentSettings({}), component_name=NAME, stack_name="prod")
    return translated.plan


def test_a_stored_snapshot_is_like_one_of_these_tests(stored: str) -> None:
    """Only what a user wrote arrives: a default of a step must not override what the pipeline says."""
    real = PipelineSnapshotResponse.model_validate_json(stored)
    made = snapshot(
        {
            "train": StepInput(
                settings={"gpu": ["A100", "H100"], "tags": {"kind": "gpu"}},
                resources={"gpu_count": 2},
                retry={"max_retries": 3, "delay": 10},
            ),
            "evaluate": StepInput(upstream=["train"], settings={"timeout": 7}, enable_cache=False),
        },
        settings={
            "max_parallelism": 3,
            "execution_mode": "per_step",
            "timeout": 500,
            "tags": {"team": "ml"},
        },
        resources={"cpu_count": 2, "memory": "1GB"},
    )
    expected = plan(made)
    steps = tuple(
        dataclasses.replace(step, command=("step", "--snapshot-id", str(real.id), "--step", step.name))
        for step in expected.steps
    )
    assert plan(real) == dataclasses.replace(expected, steps=steps, snapshot_id=str(real.id))
    assert plan(real).step("train").retry.delays == (10, 0, 0)


def test_no_token_of_the_component_is_stored_with_a_snapshot(stored: str) -> None:
    assert COMPONENT["token_secret"] not in stored
    assert COMPONENT["token_id"] not in stored

"""Each row of docs/features.md names the test that shows it, and nothing of what ZenML and Modal offer is left out."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import modal
import pytest
from pydantic import BaseModel
from zenml.config import DockerSettings, ResourceSettings
from zenml.config.pipeline_configurations import PipelineConfiguration
from zenml.config.retry_config import StepRetryConfig
from zenml.config.schedule import Schedule
from zenml.config.step_configurations import StepConfiguration

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "features.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| feature |"))
]


FEATURES = [row.split("|")[1].strip() for row in ROWS]
IMAGES = (ROOT / "docs" / "how-to" / "images.md").read_text()
"""Where a row of :data:`ROWS` sends whoever asks for a field of ``DockerSettings``."""

OF_ZENML = {
    **dict.fromkeys(("cache_policy", "caching_parameters", "enable_cache"), "caching"),
    **dict.fromkeys(
        ("enable_artifact_metadata", "enable_artifact_visualization", "outputs", "external_input_artifacts"),
        "artifacts of any materializer",
    ),
    **dict.fromkeys(("model_artifacts_or_metadata", "client_lazy_loaders"), "artifacts of any materializer"),
    **dict.fromkeys(("enable_step_logs", "enable_pipeline_logs"), "logs of steps"),
    **dict.fromkeys(("start_hook_source", "end_hook_source"), "hooks of a run"),
    **dict.fromkeys(("success_hook_source", "failure_hook_source"), "hooks: `on_start`, `on_end`, `on_success`"),
    **dict.fromkeys(("init_hook_source", "init_hook_kwargs", "cleanup_hook_source"), "hooks: `on_init`"),
    **dict.fromkeys(("pause_hook_source", "resume_hook_source"), "pause"),
    **dict.fromkeys(
        ("skip_successful_steps", "steps_to_skip", "step_input_overrides", "step_default_input_overrides"), "replay"
    ),
    **dict.fromkeys(("enable_heartbeat", "heartbeat_healthy_threshold"), "heartbeats"),
    "command": "command steps",
    "environment": "environment of a pipeline",
    "execution_mode": "execution modes",
    "experiment_tracker": "experiment trackers",
    "model": "model versions",
    "parameters": "parameters",
    "retry": "retries",
    "runtime": "isolated steps",
    "secrets": "ZenML secrets",
    "settings": "`ResourceSettings`: `cpu_count`",
    "step_operator": "step operators",
    "tags": "artifacts of any materializer, tags",
    "template": "dynamic pipelines: images that Modal builds",
}
"""By field of ZenML's configurations: how the name of its row begins."""
SAYS_NOTHING = {"name", "extra", "group", "step_type", "substitutions"}
"""Fields about names and notes, which are ZenML's own."""
OF_ITSELF = {"args", "app", "name", "image", "env", "client", "environment_name", "pty_info", "cidr_allowlist"}
"""What is given to ``Sandbox.create`` anyway, or has been renamed."""
OF_MODAL = "GPU types with fallbacks, several GPUs"
"""The first row of what is Modal's."""


def test_there_are_rows() -> None:
    assert len(ROWS) > 30


@pytest.mark.parametrize("configuration", [StepConfiguration, PipelineConfiguration])
def test_each_field_of_zenmls_configurations_has_a_row(configuration: type[StepConfiguration]) -> None:
    fields = set(configuration.model_fields) - SAYS_NOTHING
    assert fields <= set(OF_ZENML), "what of it works?"
    missing = {OF_ZENML[field] for field in fields if not any(row.startswith(OF_ZENML[field]) for row in FEATURES)}
    assert not missing


@pytest.mark.parametrize("settings", [ResourceSettings, Schedule, StepRetryConfig])
def test_a_row_names_each_field_of_zenmls_settings(settings: type[BaseModel]) -> None:
    fields = set(settings.model_fields) - SAYS_NOTHING
    text = "\n".join(ROWS[: FEATURES.index(OF_MODAL)])
    assert not {field for field in fields if f"`{field}`" not in text}, "what of it works?"


def test_a_row_sends_to_a_table_that_has_each_field_of_docker_settings() -> None:
    (row,) = (row for row in ROWS if row.startswith("| `DockerSettings` without Docker |"))
    assert "(how-to/images.md)" in row
    _, _, table = IMAGES.partition("## What becomes of each field")
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)[.`]", line.split(" | ")[0])}
    assert set(DockerSettings.model_fields) <= named, "what of it works?"
    assert not {name for name in named - {"DockerSettings"} if name not in DockerSettings.model_fields}


def test_each_argument_of_modals_sandboxes_has_a_row() -> None:
    offered = {name for name in inspect.signature(modal.Sandbox.create).parameters if not name.startswith("_")}
    text = "\n".join(ROWS[FEATURES.index(OF_MODAL) :])
    assert not {name for name in offered - OF_ITSELF if not re.search(rf"\b{name}\b", text)}


def test_whatever_modal_can_put_into_a_sandboxs_file_system_has_a_row() -> None:
    """``volumes`` takes more than Volumes, which the argument's name doesn't say."""
    annotation = str(inspect.signature(modal.Sandbox.create).parameters["volumes"].annotation)
    taken = set(re.findall(r"\._([A-Z]\w+)", annotation))
    assert {"Volume", "CloudBucketMount"} <= taken, annotation
    text = "\n".join(ROWS[FEATURES.index(OF_MODAL) :]).lower()
    assert not {name for name in taken if name.lower() not in text}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_a_test_that_exists(row: str) -> None:
    feature, answer, _, shown = (cell.strip() for cell in row.strip("|").split("|"))
    assert answer in ("yes", "no", "refused"), feature
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
    assert named, f"{feature}: no test"
    tests = [found for found in functions_of(named[1]) if found.name == named[2]]
    assert tests, shown
    assert not any(never_passes(test) for test in tests), shown


def functions_of(path: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    module = ast.parse((ROOT / path).read_text())
    return [node for node in ast.walk(module) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def never_passes(test: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is never run, or may fail. Where it is skipped on some machines the run says so: `tests/shown.py`."""
    return any(re.match(r"pytest\.mark\.(skip|xfail)\b", ast.unparse(mark)) for mark in test.decorator_list)


@pytest.mark.parametrize(
    ("mark", "never"),
    [
        ("skip", True),
        ("skip(reason='some day')", True),
        ("xfail(strict=True)", True),
        ("skipif(True, reason='needs Node.js')", False),
        ("slow", False),
    ],
)
def test_a_test_that_never_passes_shows_nothing(mark: str, never: bool) -> None:
    (test,) = ast.parse(f"@pytest.mark.{mark}\ndef test_it(): ...").body
    assert isinstance(test, ast.FunctionDef)
    assert never_passes(test) is never


def test_a_row_whose_test_is_skipped_is_said(tmp_path: Path) -> None:
    """As that of Azure is where there is no Node.js."""
    module = tmp_path / "tests" / "integration" / "test_clouds.py"
    module.parent.mkdir(parents=True)
    skips = "@pytest.mark.skipif(True, reason='needs Node.js')"
    module.write_text(
        f"import pytest\n{skips}\ndef test_blob_storage(): 1 / 0\ndef test_cloud_storage(): pass\n"
        f"{skips}\ndef test_what_no_row_names(): 1 / 0\n"
    )
    options = ("-q", "-p", "tests.shown", "-p", "no:cacheprovider", "--rootdir", ".")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    _, loud, said = ran.stdout.partition("that this run did NOT show")
    assert loud, ran.stdout
    row = "artifacts in Azure Blob Storage: needs Node.js (tests/integration/test_clouds.py::test_blob_storage)"
    assert said.splitlines()[1] == row
    assert "test_cloud_storage" not in said
    assert "test_what_no_row_names" not in said

"""The documentation's site: it builds without a warning, and what it shows is so."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel, ValidationError
from zenml.config import DockerSettings, ResourceSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.config.schedule import Schedule

from bridge import ModalPrefectOrchestratorSettings, ModalPrefectStepOperatorSettings
from bridge.cli import main as command_line
from bridge.errors import InvalidSettings
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectStepOperatorConfig
from scripts import reference
from tests.docs.console import Block, blocks
from tests.docs.test_readme import DOCUMENTS, ROOT

SETTINGS: dict[str, type[BaseModel]] = {
    settings.__name__: settings
    for settings in (
        *(ModalPrefectOrchestratorSettings, ModalPrefectStepOperatorSettings),
        *(DockerSettings, ResourceSettings, StepRetryConfig, Schedule),
    )
}
OF_COMPONENTS: dict[str, type[BaseModel]] = {
    "orchestrator": ModalPrefectOrchestratorSettings,
    "step_operator": ModalPrefectStepOperatorSettings,
    "resources": ResourceSettings,
    "docker": DockerSettings,
}
"""By their key in `settings`, where they are given as a dictionary."""
BLOCKS = [(path, block) for path in DOCUMENTS for block in blocks(path)]


def ids(page_and_block: tuple[Path, Block]) -> str:
    return f"{page_and_block[0].relative_to(ROOT)}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every link leads somewhere, every anchor exists."""
    built = subprocess.run(
        [ROOT / ".venv-docs" / "bin" / "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").exists()
    assert 'class="language-console highlight"' in (tmp_path / "site" / "tutorial" / "index.html").read_text()
    assert "ready queue" in (tmp_path / "site" / "explanation" / "architecture" / "index.html").read_text()


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    assert (reference.FOLDER / name).read_text() == reference.PAGES[name](), "`make docs` writes it"


@pytest.mark.parametrize("settings", [ModalPrefectOrchestratorConfig, ModalPrefectStepOperatorConfig])
def test_the_reference_has_each_description_of_both_components(settings: type[BaseModel]) -> None:
    page = reference.settings_page()
    described = {name: field.description for name, field in settings.model_fields.items() if field.description}
    assert described
    assert not [name for name, description in described.items() if description not in page]


@pytest.mark.parametrize("found", [one for one in BLOCKS if one[1].language == "python"], ids=ids)
def test_python_is_python(found: tuple[Path, Block]) -> None:
    text = found[1].text
    # A decorator by itself is shown where the function doesn't matter.
    ast.parse(text if not text.rstrip().splitlines()[-1].startswith("@") else f"{text}\ndef shown(): ...")


@pytest.mark.parametrize("found", [one for one in BLOCKS if one[1].language == "python"], ids=ids)
def test_python_names_what_there_is(found: tuple[Path, Block]) -> None:
    """What is imported can be, and each setting that is given is one."""
    text = found[1].text
    tree = ast.parse(text if not text.rstrip().splitlines()[-1].startswith("@") else f"{text}\ndef shown(): ...")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("bridge", "zenml", "prefect"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SETTINGS:
            given = {keyword.arg for keyword in node.keywords if keyword.arg}
            assert given <= set(SETTINGS[node.func.id].model_fields), ast.unparse(node)
            check(SETTINGS[node.func.id], {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg})
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in OF_COMPONENTS and isinstance(value, ast.Dict):
                    settings = OF_COMPONENTS[key.value]
                    names = {one.value: one for one in value.keys if isinstance(one, ast.Constant)}
                    assert set(names) <= set(settings.model_fields), ast.unparse(value)
                    check(settings, dict(zip(names, value.values, strict=True)))


def test_settings_in_yaml_are_settings() -> None:
    """And they say what the Python above them says."""
    found = {block.language: block.text for block in blocks(reference.FOLDER / "settings.md")}
    configuration = yaml.safe_load(found["yaml"])
    written = [configuration["settings"], *(one["settings"] for one in configuration["steps"].values())]
    for key, given in ((key, given) for settings in written for key, given in settings.items()):
        assert set(given) <= set(OF_COMPONENTS[key].model_fields)
        OF_COMPONENTS[key].model_validate(given)
    scope: dict[str, Any] = {}
    exec(found["python"], scope)
    in_python = (scope["training"].configuration, scope["train"].configuration)
    assert [
        {key: value.model_dump(exclude_unset=True) for key, value in one.settings.items()} for one in in_python
    ] == written


def check(settings: type[BaseModel], given: Mapping[str, ast.expr]) -> None:
    """Values that stand there can be given; the others are the reader's."""
    values = {}
    for name, value in given.items():
        with contextlib.suppress(ValueError):
            values[name] = ast.literal_eval(value)
    if len(values) == len(given):
        settings.model_validate(values)


def test_settings_that_make_no_sense_are_seen() -> None:
    for text in (
        'ModalPrefectOrchestratorSettings(block_network="perhaps")',
        "ModalPrefectOrchestratorSettings(no_such=1)",
        '{"step_operator": {"block_network": "perhaps"}}',
        '{"step_operator": {"no_such": 1}}',
        'ResourceSettings(cpu_count="many")',
    ):
        with pytest.raises((AssertionError, ValidationError, InvalidSettings)):
            test_python_names_what_there_is((ROOT / "README.md", Block("python", "", text)))
    test_python_names_what_there_is(
        (ROOT / "README.md", Block("python", "", '{"step_operator": {"block_network": True, "timeout": minutes}}'))
    )


@pytest.mark.parametrize("found", [one for one in BLOCKS if "modal-prefect " in one[1].text], ids=ids)
def test_our_commands_exist_as_they_are_typed(found: tuple[Path, Block]) -> None:
    for command in found[1].commands:
        words = shlex.split(command)
        if words[:1] != ["modal-prefect"]:
            continue
        below = command_line.commands[words[1]]
        arguments = [word.strip("<>") for word in words[2:]]
        if any(isinstance(one.type, click.types.UUIDParameterType) for one in below.params):
            arguments = [one if one.startswith("-") else "00000000-0000-0000-0000-000000000000" for one in arguments]
        below.make_context(words[1], arguments)


def test_the_changes_that_contributing_lists_name_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [line for line in text.split("## Ten typical changes")[1].splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    for row in rows:
        named = [part for part in row.split("|")[2].split("`")[1::2] if "/" in part]
        assert 1 <= len(named) <= 2, row
        assert all(list(ROOT.glob(name.rstrip("/"))) for name in named), row

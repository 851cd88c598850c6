"""The commands of others that documents and messages name exist: a fix that can't be typed mends nothing."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tests.docs.test_readme import DOCUMENTS, ROOT

MESSAGES = [path for path in (ROOT / "bridge").rglob("*.py") if "upstream" not in path.name]
_NAMED = re.compile(r"(?:^\$ |`)zenml ([a-z][^`\n]*)", re.MULTILINE)
_NOT_COMMANDS = {"local"}  # the benchmarks' name of ZenML's local orchestrator
_JOINED = re.compile(r'"\s*\n\s*f?"')
"""Where a message goes on in the next line of the source."""


def named(path: Path) -> list[str]:
    text = (
        _JOINED.sub("", path.read_text(encoding="utf-8")) if path.suffix == ".py" else path.read_text(encoding="utf-8")
    )
    return [command for command in _NAMED.findall(text) if command not in _NOT_COMMANDS]


@pytest.mark.parametrize("path", [path for path in [*DOCUMENTS, *MESSAGES] if named(path)], ids=lambda path: path.name)
def test_commands_of_zenml(path: Path) -> None:
    from zenml.cli.cli import cli

    missing = []
    for command in named(path):
        below: click.Command = cli
        for word in command.split():
            if not isinstance(below, click.Group):
                break
            if word not in below.commands:
                missing.append(command)
                break
            below = below.commands[word]
    assert not missing

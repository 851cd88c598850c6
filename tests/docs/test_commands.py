"""Each command line that documents and messages quote can be typed: a fix that can't mends nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from zenml.container_registries.base_container_registry import BaseContainerRegistryConfig

from bridge.cli import main as command_line
from bridge.settings import ModalPrefectOrchestratorConfig, ModalPrefectStepOperatorConfig
from tests.docs.test_readme import DOCUMENTS, ROOT

MESSAGES = [path for path in (ROOT / "bridge").rglob("*.py") if "upstream" not in path.name]
_COMMAND = r"((?:zenml|prefect|modal-prefect|modal) [a-z][^`\n]*)"
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_TYPED = re.compile(rf"^ *(?:\$ )?{_COMMAND}", re.MULTILINE)
_INLINE = re.compile(rf"`{_COMMAND}`")
_FIX = re.compile(r'f"((?:prefect|modal) [a-z-]+ [a-z-]+[ {][^"]*)"')
"""A message that is a command and nothing else, up to a comma."""
_NOT_COMMANDS = {"zenml local"}  # the benchmarks' name of ZenML's local orchestrator
_JOINED = re.compile(r'"\s*\n\s*f?"')
"""Where a message goes on in the next line of the source."""
_BLANK = re.compile(r"<[^>]*>|\{[^}]*\}|\.\.\.")
"""What a reader fills in, or a program."""
FIELDS = {
    "orchestrator": ModalPrefectOrchestratorConfig.model_fields,
    "step-operator": ModalPrefectStepOperatorConfig.model_fields,
    "container-registry": BaseContainerRegistryConfig.model_fields,
}
"""What can be set on a component, by its kind."""
UUID = "00000000-0000-0000-0000-000000000000"

HELP = """
import contextlib, io, json, sys
from prefect.cli import app
said = {}
for words in json.load(sys.stdin):
    sys.argv = ["prefect", *words, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        app()
    said[" ".join(words)] = out.getvalue()
print(json.dumps(said))
"""
"""Prints the help of each command of Prefect that is asked for: one start of its CLI for all of them."""


def quoted(path: Path) -> Iterator[str]:
    """The command lines of a document, in its blocks and in its sentences; of a module, in its messages."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        joined = _JOINED.sub("", text)
        found = _INLINE.findall(joined) + [fix.partition(", or ")[0] for fix in _FIX.findall(joined)]
    else:
        blocks = [re.sub(r"\\\n\s*", " ", block) for block in _FENCED.findall(text) if "──" not in block]
        found = [line for block in blocks for line in _TYPED.findall(block)]
        found += _INLINE.findall(_FENCED.sub("", text))
    for line in found:
        command = re.split(r"  #| && | \| ", _BLANK.sub("x", line))[0].strip()
        if command not in _NOT_COMMANDS:
            yield command


def of(program: str) -> list[object]:
    """Each command line of a program, once, with a place where it stands."""
    found: dict[str, Path] = {}
    for path in [*DOCUMENTS, *MESSAGES]:
        for command in quoted(path):
            if command.split()[0] == program:
                found.setdefault(command, path)
    return [pytest.param(command, id=f"{path.name}: {command}") for command, path in found.items()]


def words_of(command: str) -> list[str]:
    return shlex.split(command)[1:]


def options_of(words: list[str]) -> list[str]:
    """The options among the words, without their values."""
    return [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]


def path_of(words: list[str]) -> list[str]:
    """The words before the first one that is no command: an option, a value, what is to be filled in."""
    path: list[str] = []
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]+", word):
            break
        path.append(word)
    return path


def looked_up(below: click.Command, command: str) -> tuple[click.Command, list[str], set[str]]:
    """What a command line means to a CLI: the command, the words after it, and the options that it doesn't know."""
    words = words_of(command)
    while isinstance(below, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in below.commands, f"no such command: {words[0]}"
        below = below.commands[words.pop(0)]
    known = {option for parameter in below.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return below, words, set(options_of(words)) - known - {"--help"}


@pytest.mark.parametrize("command", of("zenml"))
def test_commands_of_zenml(command: str) -> None:
    from zenml.cli.cli import cli

    below, words, unknown = looked_up(cli, command)
    if unknown and below.context_settings.get("ignore_unknown_options"):
        kind, given = words_of(command)[0], " ".join(words).replace("=", " ")
        # What isn't an option of the command itself is refused without a sign of equality.
        assert not unknown & set(words)
        if kind == "secret":
            return  # the keys are whoever reads the secret's to know
        if "--flavor" in given and "--flavor modal-prefect" not in given and kind not in FIELDS:
            return  # what a component is configured with is its flavour's to know, and this isn't ours
        unknown -= {f"--{field}" for field in FIELDS.get(kind, ())}
    assert not unknown


@pytest.mark.parametrize("command", of("modal"))
def test_commands_of_modal(command: str) -> None:
    from modal.cli.entry_point import entrypoint_cli

    below, words, unknown = looked_up(entrypoint_cli, command)
    assert not unknown
    if words and not isinstance(below, click.Group):
        below.make_context(command, words)


@pytest.fixture(scope="module")
def helped() -> dict[str, str]:
    """What Prefect's CLI says of each of its commands that is quoted, and of those above it."""
    paths = {tuple(path[:length]) for path in map(_path, of("prefect")) for length in range(1, len(path) + 1)}
    said = subprocess.run(
        [sys.executable, "-c", HELP],
        input=json.dumps(sorted(paths)),
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(said.stdout.splitlines()[-1])
    return found


def _path(parameters: object) -> list[str]:
    return path_of(words_of(parameters.values[0]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", of("prefect"))
def test_commands_of_prefect(command: str, helped: dict[str, str]) -> None:
    words = words_of(command)
    path = path_of(words)
    # A value may look like a command: the longest path that Prefect calls by its name is the command.
    known = [length for length in range(1, len(path) + 1) if _is_of(helped[" ".join(path[:length])], path[:length])]
    assert known, f"no such command: {command}"
    text = helped[" ".join(path[: known[-1]])]
    if re.search(r" COMMAND\b", text.partition("\n\n")[0]):
        below = [word for word in words[known[-1] :] if not word.startswith("-")]
        assert not below, f"no such command below `prefect {' '.join(path[: known[-1]])}`: {below[0]}"
    missing = [
        option for option in options_of(words) if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text)
    ]
    assert not missing


def _is_of(text: str, path: list[str]) -> bool:
    usage = next((line for line in text.splitlines() if "Usage:" in line), "")
    return f"prefect {' '.join(path)}" in re.sub(r"\s+", " ", usage.replace("[OPTIONS] ", ""))


@pytest.mark.parametrize("command", of("modal-prefect"))
def test_our_commands(command: str) -> None:
    name, *arguments = words_of(command)
    below = command_line.commands[name]  # which is there, or this fails
    if not arguments:
        return  # a sentence that names the command
    if any(isinstance(one.type, click.types.UUIDParameterType) for one in below.params):
        arguments = [one if one.startswith("-") else UUID for one in arguments]
    below.make_context(name, arguments)

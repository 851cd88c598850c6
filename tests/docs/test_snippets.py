"""Each block of the documents has exactly one checker, or stands in the list of what is only read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.console import Block, blocks
from tests.docs.test_readme import DOCUMENTS, ROOT

TYPED = {"zenml", "prefect", "modal-prefect", "modal", "make"}
"""Programs whose command lines are checked (`make` by its targets)."""
ONLY_READ = {
    # whoever follows the guide has them, and the tests don't
    *("docker", "compose", "kubectl"),
    # of the reader's own project
    *("git", "pip", "python", "python3", "opentelemetry-instrument"),
    # of the shell
    *("alias", "cd", "cp", "export", "source"),
}
DRAWN = {"README.md": 2, "ARCHITECTURE.md": 1}
"""Pages with text that nobody types: how many blocks, output of `make demo` and drawings."""


def is_run(page: str, block: Block) -> bool:
    return page == "docs/tutorial.md"


def is_followed(page: str, block: Block) -> bool:
    return page == "docs/how-to/laptop.md"


def is_deployed(page: str, block: Block) -> bool:
    return page == "docs/how-to/deployments.md" and block.note.endswith(": begin")


def is_an_example(page: str, block: Block) -> bool:
    return page == "README.md" and block.note.endswith(" example: begin")


def is_written_from_the_code(page: str, block: Block) -> bool:
    return page.startswith("docs/reference/") and block.language == "text"


def is_a_configuration(page: str, block: Block) -> bool:
    return page.startswith("docs/reference/") and block.language == "yaml"


def is_python(page: str, block: Block) -> bool:
    return block.language == "python" and not (is_run(page, block) or is_an_example(page, block))


def is_typed(page: str, block: Block) -> bool:
    return block.language == "console" and not any(runs(page, block) for runs in (is_run, is_followed, is_deployed))


def is_a_file_of_ours(page: str, block: Block) -> bool:
    named = re.fullmatch(r'--8<-- "([^"]+)"\n', block.text)
    return named is not None and (ROOT / named[1]).is_file()


def is_drawn(page: str, block: Block) -> bool:
    return block.language == "text" and page in DRAWN


CHECKERS: dict[Callable[[str, Block], bool], str] = {
    is_run: "tests/integration/test_deploy.py::test_the_tutorial",
    is_followed: "tests/integration/test_deploy.py::test_the_whole_way_on_a_laptop",
    is_deployed: "tests/deployments/test_services.py::test_watched_cancelled_and_run_again",
    is_an_example: "tests/docs/test_readme.py::test_the_examples_of_the_readme_are_the_tested_ones",
    is_written_from_the_code: "tests/docs/test_site.py::test_the_reference_is_what_the_code_says",
    is_a_configuration: "tests/docs/test_site.py::test_settings_in_yaml_are_settings",
    is_python: "tests/docs/test_site.py::test_python_names_what_there_is",
    is_typed: "tests/docs/test_commands.py::test_commands_of_zenml",
    is_a_file_of_ours: "tests/integration/test_events.py::test_a_gpu_step_that_fails_twice_is_told_of",
    is_drawn: "",
}
FOUND = [(str(path.relative_to(ROOT)), block) for path in DOCUMENTS for block in blocks(path)]


@pytest.mark.parametrize(("page", "block"), FOUND, ids=lambda one: one if isinstance(one, str) else one.language)
def test_a_block_has_one_checker(page: str, block: Block) -> None:
    checkers = [checker.__name__ for checker in CHECKERS if checker(page, block)]
    assert len(checkers) == 1, f"{page}: {checkers or 'nobody'} of\n{block.text}"


@pytest.mark.parametrize("named", [name for name in CHECKERS.values() if name])
def test_the_checkers_exist(named: str) -> None:
    file, _, test = named.partition("::")
    assert re.search(rf"^(async )?def {test}\b", (ROOT / file).read_text(), re.MULTILINE), named


def test_what_is_drawn_is_counted() -> None:
    drawn = [page for page, block in FOUND if is_drawn(page, block)]
    assert {page: drawn.count(page) for page in drawn} == DRAWN


@pytest.mark.parametrize(
    ("page", "block"), [one for one in FOUND if is_typed(*one)], ids=lambda one: one if isinstance(one, str) else ""
)
def test_what_is_typed_is_of_a_program_that_is_checked(page: str, block: Block) -> None:
    """Or of one that is only read; and nothing in such a block is neither typed nor the end of a line above."""
    lines = re.sub(r"\\\n *", " ", block.text).splitlines()
    assert [line for line in lines if line and not line.startswith("$ ")] == []
    for command in block.commands:
        for part in re.split(r" && | \| ", command):
            assert shlex.split(part)[0] in TYPED | ONLY_READ, f"{page}: {part}"


def test_nothing_is_only_read_that_is_not_there() -> None:
    typed = {shlex.split(part)[0] for _, block in FOUND for line in block.commands for part in line.split(" && ")}
    assert typed >= ONLY_READ


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_fenced(path: Path) -> None:
    """Nobody sees a block that is only indented, nor fences that the checkers can't read."""
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(list(blocks(path)))
    outside = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n(?: *\n)+", outside):
        if paragraph.startswith(("    ", "\t")):
            before = outside[: outside.index(paragraph)].rstrip().splitlines()
            in_a_list = any(re.match(r" *([-*]|\d+\.) ", line) for line in before[-6:])
            assert in_a_list, f"not fenced: {paragraph}"

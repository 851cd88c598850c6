"""The documents say what is so: snippets are the code that the tests run, names exist, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.settings import ModalPrefectOrchestratorConfig

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize(("name", "example"), [("gpu", "gpu"), ("per_step", "gpu"), ("step_operator", "step_operator")])
def test_the_examples_of_the_readme_are_the_tested_ones(name: str, example: str) -> None:
    readme = (ROOT / "README.md").read_text()
    quoted = readme.split(f"<!-- {name} example: begin -->\n```python\n")[1].split("```")[0]
    assert quoted.strip() in (ROOT / "examples" / example / "pipeline.py").read_text()


def test_the_settings_of_the_readme_exist() -> None:
    table = (ROOT / "README.md").read_text().split("## Settings")[1].split("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named
    assert named <= set(ModalPrefectOrchestratorConfig.model_fields)


def test_each_module_of_the_package_answers_a_question_of_the_architecture() -> None:
    """Those of four packages, whose modules are of one kind, needn't be named; what is named is there."""
    tables = (ROOT / "ARCHITECTURE.md").read_text().split("## The packages")[1].split("\n## Rules")[0]
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", tables)) - {"bridge/"}
    packages = {path.parent.name for path in (ROOT / "bridge").glob("*/__init__.py")}
    told = packages - {"runners", "host", "commands", "doctor"}
    modules = {path.name for folder in (".", *told) for path in (ROOT / "bridge" / folder).glob("*.py")}
    assert modules - {"__init__.py"} | {f"{name}/" for name in packages} <= named
    assert not {one for one in named if not list((ROOT / "bridge").rglob(Path(one).name))}


def test_the_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for path in DOCUMENTS for target in re.findall(r"[`$] ?make ([a-z-]+)", path.read_text())}
    assert {"demo", "test"} <= named
    assert named <= targets


@pytest.mark.parametrize(("options", "code"), [((), 5), (("-m", "modal_account"), 0), (("-m", ""), 0)])
def test_what_costs_money_or_hours_runs_only_where_it_is_asked_for(options: tuple[str, ...], code: int) -> None:
    """Also where its folder is named: 5 is pytest's "no tests collected"."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        *options,
        "tests/account",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == code, ran.stdout + ran.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


def promises() -> list[tuple[str, str]]:
    """The rows of the tables of promises: the document and the row."""
    found = []
    for path in DOCUMENTS:
        for table in re.split(r"^\| promise +\| ", path.read_text(), flags=re.MULTILINE)[1:]:
            rows = table.split("\n\n")[0].splitlines()[2:]
            found += [(str(path.relative_to(ROOT)), row) for row in rows if row.startswith("|")]
    return found


@pytest.mark.parametrize(("document", "row"), promises(), ids=lambda text: text.strip("| ")[:60])
def test_a_promise_names_tests_that_exist(document: str, row: str) -> None:
    """`file.py`, `file.py::test`, `file.py::TestClass::test` or, in the file that was named last, `::test`."""
    shown = row.strip("| ").rpartition("|")[2]
    named = re.findall(r"`((?:[\w/.-]+\.py)?)(?:::Test\w+)?(?:::(\w+))?`", shown)
    assert named, f"{document}: {row}"
    assert len(named) == len(re.findall(r"`[^`]*(?:\.py|::)[^`]*`", shown)), f"{document}: {row}"
    files: list[Path] = []
    for file, test in named:
        if file:
            files = [path for path in (ROOT / "tests").rglob(Path(file).name) if f"/{path}".endswith(f"/{file}")]
            assert len(files) == 1, (file, files)
        assert not test or re.search(rf"^ *(async )?def {test}\b", files[0].read_text(), re.MULTILINE), (file, test)


PROMISING = {
    *("docs/dynamic.md", "docs/reliability.md", "docs/security.md", "docs/semantics.md", "docs/step-operator.md"),
    "docs/warm.md",
    *(f"docs/how-to/{name}.md" for name in ("clean-up", "deployments", "secrets", "stop", "watch", "work-pool")),
}
"""Pages that promise behaviour: each has a table that names the tests."""


@pytest.mark.parametrize("page", sorted(PROMISING))
def test_a_page_that_promises_names_its_tests(page: str) -> None:
    assert len([row for document, row in promises() if document == page]) >= 5


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_exist(path: Path) -> None:
    named = re.findall(r"`((?:bridge|tests|examples|flows|deployments)/[\w/.-]+)`", path.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]

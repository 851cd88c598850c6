"""The private names of the Modal SDK that this package uses are there, in whichever version is installed."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import modal
import pytest

import bridge
from bridge import upstream_modal


def resolve(dotted: str) -> object:
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("dotted", upstream_modal.PRIVATE)
def test_private_name_exists(dotted: str) -> None:
    assert resolve(dotted) is not None


def test_private_names_are_used_nowhere_else() -> None:
    private = re.compile(r"modal\._|modal_proto|synchronizer|\bmodal\.\w+\._|_impl\b|\._stub\b")
    folder = Path(bridge.__file__).parent
    found = [
        f"{path.relative_to(folder)}:{number}"
        for path in folder.rglob("*.py")
        if path.name != "upstream_modal.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if private.search(line)
    ]
    assert not found


def test_sandboxes_have_no_disk_of_a_size_of_their_own() -> None:
    """docs/features.md says so; where the SDK takes one, there should be a setting."""
    assert "ephemeral_disk" not in inspect.signature(modal.Sandbox.create).parameters


def test_the_sdk_is_imported_by_the_runner_alone() -> None:
    imports = re.compile(r"^\s*(from|import) modal\b(?!_)", re.MULTILINE)
    folder = Path(bridge.__file__).parent
    importers = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if imports.search(path.read_text())}
    assert {name for name in importers if not name.startswith("runners/modal")} == {"upstream_modal.py"}


@pytest.mark.parametrize(
    ("sandbox_id", "expected"),
    [
        ("sb-" + "a1B2" * 5 + "zz", True),
        ("sb-" + "a1B2" * 6 + "zz", False),
        ("sb-" + "a1B2" * 5 + "z-", False),
        ("sb-" + "a1B2" * 5 + "z\u00e9", False),
    ],
)
def test_backends_are_told_by_their_ids(sandbox_id: str, expected: bool) -> None:
    assert upstream_modal.is_v1(sandbox_id) is expected

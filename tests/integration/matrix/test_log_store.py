"""A stack with a log store of its own: it has each line of each step once, and the last one, too."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.lab import STACK_CODE, Lab, Ran


@pytest.fixture
def lines(lab: Lab) -> Any:
    import lines

    return lines


@pytest.fixture(scope="module")
def kept(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the log store, which is registered."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    folder = tmp_path_factory.mktemp("kept")
    Client().create_flavor("kept_logs.KeptLogsFlavor", StackComponentType.LOG_STORE)
    Client().create_stack_component("kept", "kept-logs", StackComponentType.LOG_STORE, {"folder": str(folder)})
    return folder


def keeping(stack: str) -> str:
    """A stack like this one, with the log store."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    name = f"keeping-{uuid4().hex[:6]}"
    parts = {kind: each[0].id for kind, each in Client().get_stack(stack).components.items()}
    Client().create_stack(name, components={**parts, StackComponentType.LOG_STORE: "kept"})
    return name


def logged(ran: Ran, kept: Path) -> Counter[tuple[str, str]]:
    """The steps' own lines, and how often the log store has them.

    Not those of the client: that is what the terminal of the submitting process shows, all steps' output among it.
    """
    found = [json.loads(line) for line in (kept / "kept.jsonl").read_text().splitlines()]
    return Counter(
        (line["step"] or line["source"], line["line"].strip())
        for line in found
        if line["run"] == str(ran.run.id) and "says" in line["line"] and line["source"] != "client"
    )


ATTEMPTS = 2
SAID = Counter(
    {
        **{
            (f"{name}", f"says {number}: {line}"): 1
            for name, number in (("first", 1), ("second", 2))
            for line in range(300)
        },
        ("first", "says 1: a warning"): 1,
        ("second", "says 2: a warning"): 1,
        ("first", "says 1: the last"): 1,
        ("second", "says 2: the last"): 1,
        ("breaks", "says: it breaks"): ATTEMPTS,
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
@pytest.mark.parametrize("mode", ["per_step", "pipeline"])
def test_static(lab: Lab, lines: Any, kept: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: str) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STACK_CODE)]))
    ran = lab.run(lines.static, keeping(lab.stack(place)), settings={"execution_mode": mode})
    assert ran.steps == {"first": "completed", "second": "completed", "silent": "completed", "breaks": "failed"}
    assert logged(ran, kept) == SAID


@pytest.mark.slow
@pytest.mark.parametrize("place", ["process", "modal"])
def test_dynamic(lab: Lab, lines: Any, kept: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STACK_CODE)]))
    ran = lab.run(lines.dynamic, keeping(lab.stack(place)))
    assert ran.steps == {"first": "completed", "second": "completed", "silent": "completed", "breaks": "failed"}
    assert logged(ran, kept) == SAID + Counter({("orchestrator", "says of the function"): 1})

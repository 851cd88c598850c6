"""Pipelines with secrets, as a user writes them; and a word that is meant to be found."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from zenml import pipeline, step
from zenml.client import Client
from zenml.config.resource_settings import ResourceSettings

SECRETS = ["marked_secret"]
WORKSPACE_SECRET = "of-the-workspace"
"""A secret that Modal keeps, named by the settings of every run."""


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


@step(enable_cache=False, secrets=SECRETS)
def uses(word: str, expected: str) -> str:
    """Has its secret, and its neighbour's variable not."""
    assert digest(os.environ["IN_SECRET"]) == expected
    assert "RUN_TOKEN" in os.environ
    assert "IN_WORKSPACE" in os.environ or os.environ["MODAL_SANDBOX_ID"].startswith("sb-local-")
    print(f"{word} in the output", flush=True)
    return f"{word} in an artifact"


@step(enable_cache=False)
def raises(word: str, before: str) -> str:
    raise ValueError(f"{word} in an exception")


@step(enable_cache=False)
def has_variable(word: str, before: str) -> str:
    assert "USER_TOKEN" in os.environ
    return "ok"


@step(enable_cache=False)
def kills_itself(word: str, before: str) -> str:
    sys.stdout.flush()
    os._exit(9)


def build(word: str, expected: str, own: bool) -> None:
    first = uses(word, expected, id="uses")
    # A sandbox of its own: no other step asks for as much.
    alone = {"resources": ResourceSettings(memory="3GiB")} if own else {}
    again = uses.with_options(settings=alone)(word, expected, after=["uses"], id=f"again_{word}")
    has_variable.with_options(environment={"USER_TOKEN": os.environ.get("MARK_STEP_VARIABLE", "")})(word, again)
    raises(word, first, id=f"raises_{word}")
    kills_itself(word, first)


@pipeline
def per_step(word: str, expected: str) -> None:
    build(word, expected, own=True)


@pipeline
def at_once(word: str, expected: str) -> None:
    build(word, expected, own=False)


@pipeline
def one_step(word: str, expected: str) -> None:
    uses(word, expected, id="uses")


@pipeline(dynamic=True)
def isolated_step(word: str, expected: str) -> None:
    """Two sandboxes of one image: of the function, and of the step."""
    uses.with_options(runtime="isolated")(word, expected)


operated = uses.with_options(step_operator=True)


@pipeline(dynamic=True, depends_on=[operated])
def dynamic(word: str, expected: str) -> None:
    """Three sandboxes: of the function, of the step that a step operator runs, and of the one that raises."""
    raises.with_options(runtime="isolated")(word, operated(word, expected))


@step(enable_cache=False)
def asks(word: str, into: str) -> None:
    """What somebody who writes a step may try. Values are told by their digest."""
    client = Client()
    stack = client.active_stack

    def token(component: Any) -> str | None:
        secret = component.config.token_secret
        return digest(secret) if secret else None

    found = {
        "variables": [digest(value) for value in os.environ.values()],
        "secrets": {
            f"{name}.{key}": digest(value)
            for name in ("modal", "prefect", "registry", "marked_secret")
            for key, value in client.get_secret(name).secret_values.items()
        },
        "orchestrator": token(stack.orchestrator),
        "operators": [token(operator) for operator in stack.step_operators.values()],
    }
    Path(into).write_text(json.dumps(found))


@pipeline
def one_asks(word: str, into: str) -> None:
    asks(word, into)


@pipeline(dynamic=True)
def function_asks(word: str, into: str) -> None:
    """The step is in the sandbox of the function, which calls step operators."""
    asks(word, into)

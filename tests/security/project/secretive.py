"""Pipelines with secrets, as a user writes them; and a word that is meant to be found."""

from __future__ import annotations

import hashlib
import os
import sys

from zenml import pipeline, step
from zenml.config.resource_settings import ResourceSettings

SECRETS = ["marked_secret"]


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


@step(enable_cache=False, secrets=SECRETS)
def uses(word: str, expected: str) -> str:
    """Has its secret, and its neighbour's variable not."""
    assert digest(os.environ["IN_SECRET"]) == expected
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

"""When a token ends, as it says itself."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timezone

import pytest

from bridge.cleanup.login import expiry_of, what_ends

AT = datetime(2026, 11, 29, 1, 30, tzinfo=timezone.utc)


def token(**claims: object) -> str:
    """A JSON web token; what says who signed it doesn't matter here."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims)]
    return ".".join([*parts, "c2ln"])


@pytest.mark.parametrize("more", ["", "a", "ab", "abc"])
def test_a_token_says_when_it_ends(more: str) -> None:
    assert expiry_of(token(exp=AT.timestamp(), more=more)) == AT
    assert expiry_of(token(exp=int(AT.timestamp()), more=more)) == AT


@pytest.mark.parametrize("strange", ["", "a.b", "a.b.c", token(sub="x"), token(exp="soon"), token(exp=None), "a.b.c.d"])
def test_one_that_says_nothing_of_it(strange: str) -> None:
    assert expiry_of(strange) is None


def test_the_end_is_said_in_one_time_zone() -> None:
    assert "ends at 2026-11-29 01:30 UTC" in what_ends(AT)

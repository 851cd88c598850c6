"""The pauses before another sandbox: what struck one has often struck many, which mustn't come back together."""

from __future__ import annotations

from bridge.again import LONGEST_PAUSE_SECONDS, differing

SERIES = 200
LOSSES = 10


def test_pauses_grow_and_have_a_limit() -> None:
    """At random up to 2, 4, 8, … seconds, at most a minute, and at least half a second."""
    by_loss = list(zip(*(differing(LOSSES) for _ in range(SERIES)), strict=True))
    for number, pauses in enumerate(by_loss):
        most = min(2.0 * 2**number, LONGEST_PAUSE_SECONDS)
        assert 0.5 <= min(pauses) <= max(pauses) <= most, number
        # Of two hundred one is surely in the upper half of what is allowed.
        assert max(pauses) > most / 2, number


def test_pauses_differ() -> None:
    """A thousand steps that lost their sandboxes in one moment don't ask for new ones in one moment."""
    for pauses in zip(*(differing(LOSSES) for _ in range(SERIES)), strict=True):
        assert len({round(pause, 3) for pause in pauses}) > SERIES / 2
    assert differing(0) == []

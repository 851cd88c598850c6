"""The lease on which sandboxes live: their flow, or a step operator's caller, renews it, and without it they end.

The flow writes the time into the metadata of its ZenML run, once for all its sandboxes (:mod:`bridge.cleanup.renewal`);
each sandbox reads it with the token that it has anyway (:mod:`bridge.host.orphan`). So neither needs a way to the
other, and nobody needs a way to Prefect. The sandbox of a step operator has a lease of its own, in the metadata of its
step run: another orchestrator has no flow. What is written is compared, never reckoned with: the clocks of two machines
differ. Eight of these writes and reads (:mod:`bridge.cleanup.signs_of_life`) fit into one ``orphan_timeout``. Standard
library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

FIRST_SIGN_SECONDS = 120.0
"""How long a flow may take from its beginning to its first sign of life; a few seconds is what it takes."""
CLOCKS_SECONDS = 60.0
"""By how much the clocks of two machines may differ."""
LOOKS = 8
"""How often the lease is renewed, and read, within its time."""


def period(orphan_timeout: float) -> float:
    """Return the seconds between two renewals, and between two looks at them."""
    return orphan_timeout / LOOKS


def grace(orphan_timeout: float) -> float:
    """Return the seconds after the last sign of life at which no sandbox lives on any more that could ask."""
    return orphan_timeout + 2 * period(orphan_timeout)


def age(sign: str, now: datetime) -> float | None:
    """Return how many seconds ago a sign was written, by the clocks of both machines; None for none."""
    return (now - datetime.fromisoformat(sign.partition(" ")[0])).total_seconds() if sign else None


def signer(sign: str) -> tuple[str, int]:
    """Return the process that gave a sign (:mod:`bridge.flow_run.whereabouts`), and its number among its flow run's.

    "" and 0 where there is no sign.
    """
    _, _, process_and_life = sign.partition(" ")
    process, _, life = process_and_life.rpartition(" ")
    return process, int(life or 0)


@dataclass
class Lease:
    """What one sandbox knows of its lease. Times are of one monotonic clock, in seconds.

    It runs from the moment at which the sandbox began or last saw a new sign of life, and one period longer: after
    that sign the flow may have lived on until just before its next. So a sandbox lives on without its flow for
    ``orphan_timeout`` at least, and a quarter longer at most. Time in which nobody could be asked isn't counted: then
    the flow may well be there, and only ZenML isn't.
    """

    orphan_timeout: float
    began: float
    _sign: str | None = field(default=None, init=False)
    _deadline: float = field(init=False)
    _looked: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = self.began + self.orphan_timeout
        self._looked = self.began

    def seen(self, sign: str, now: float, waited: float = 0.0) -> bool:
        """ZenML has answered, after ``waited`` seconds; return whether the flow counts as gone."""
        self._deadline += waited
        if sign != self._sign:
            self._sign = sign
            self._deadline = now + self.orphan_timeout + period(self.orphan_timeout)
        self._looked = now
        return now >= self._deadline

    def unanswered(self, now: float) -> None:
        """ZenML couldn't be asked."""
        self._deadline += now - self._looked
        self._looked = now

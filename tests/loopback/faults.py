"""The knobs of the loopback server: what goes wrong, how often, for how long."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from grpclib import Status


@dataclass
class Faults:
    """Set on the server's loop through :class:`tests.loopback.LoopbackModal`, read by its services."""

    cold_start: float = 0.0
    """Seconds between a sandbox's scheduling and the start of its process."""
    capacity: dict[str, int] = field(default_factory=dict)
    """GPUs of a type there are; a type that isn't named has no limit. ``""`` limits sandboxes without a GPU."""
    refuse_when_full: bool = False
    """Refuse a create on V2 for which there is no place, instead of letting it wait for one."""
    creates_per_second: float | None = None
    create_delay: float = 0.0
    """Seconds a create takes before anything happens."""
    stream_delay: float = 0.0
    """Seconds before each piece of output is sent."""
    enforce_memory: bool = False
    max_streams: int = 1000
    unavailable_until: float = 0.0
    revoked: bool = False
    """Take no token any more."""
    create_errors: deque[Status] = field(default_factory=deque)
    lost_replies: int = 0
    """Creates whose answer is lost after the sandbox was made."""
    broken_streams: int = 0
    """Output streams that break after their first piece."""
    init_failures: int = 0
    recent_creates: deque[float] = field(default_factory=deque)

    def throttled(self) -> bool:
        """Whether one more create exceeds the rate; counts it if not."""
        if self.creates_per_second is None:
            return False
        now = time.monotonic()
        while self.recent_creates and self.recent_creates[0] <= now - 1:
            self.recent_creates.popleft()
        if len(self.recent_creates) >= self.creates_per_second:
            return True
        self.recent_creates.append(now)
        return False

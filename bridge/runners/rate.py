"""A limit on how often something may begin."""

from __future__ import annotations

import asyncio


class RateLimit:
    """Lets at most ``rate`` callers a second through, in the order of their coming. Belongs to one event loop.

    Evenly, not in bursts: what the other side counts is when requests arrive, and a burst that was held up a
    little arrives together with the next one. A caller that is cancelled while it waits has used its turn.
    """

    def __init__(self, rate: float) -> None:
        """Raises ``ValueError`` unless ``rate`` is positive."""
        if rate <= 0:
            raise ValueError(f"rate={rate}: must be positive")
        self._gap = 1 / rate
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next)
        self._next = turn + self._gap
        if turn > now:
            await asyncio.sleep(turn - now)

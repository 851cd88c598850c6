"""A limit on how often something may begin."""

from __future__ import annotations

import asyncio
from collections import deque


class RateLimit:
    """Lets at most ``rate`` callers a second through, in the order of their coming. Belongs to one event loop.

    A burst of ``rate`` is let through at once; what counts is any window of a second (of ``1 / rate`` seconds
    where ``rate`` is below 1). A caller that is cancelled while it waits has used its turn.
    """

    def __init__(self, rate: float) -> None:
        """Raises ``ValueError`` unless ``rate`` is positive."""
        if rate <= 0:
            raise ValueError(f"rate={rate}: must be positive")
        self._burst = max(1, int(rate))
        self._window = self._burst / rate
        self._turns: deque[float] = deque(maxlen=self._burst)

    async def turn(self) -> None:
        """Wait for the next turn."""
        now = asyncio.get_running_loop().time()
        turn = now
        if len(self._turns) == self._burst:
            turn = max(now, self._turns[0] + self._window)
        self._turns.append(turn)
        if turn > now:
            await asyncio.sleep(turn - now)

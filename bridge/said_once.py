"""Warnings that nobody needs to read twice. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.watching.logs import Logger  # which imports Prefect: most of those who warn have none


class SaidOnce:
    """Gives each warning once, in the words that it is given in.

    Args:
        said: What was said elsewhere already.
    """

    def __init__(self, said: Iterable[str] = ()) -> None:
        self._said = set(said)

    def warn(self, warnings: Iterable[str], logger: Logger) -> None:
        """Warn of what hasn't been said yet."""
        for warning in warnings:
            if warning not in self._said:
                self._said.add(warning)
                logger.warning("%s", warning)

"""Telling of each step's life, once: what the flow sees happen, and what only ZenML says, afterwards. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

_FAILED = frozenset({"failed", "retrying"})
_NOT_STARTED = frozenset({"initializing", "provisioning", "queued", "cached", "skipped"})


class About(NamedTuple):
    """A step, and the GPU that it has, "" for none."""

    step: str
    gpu: str
    isolated: str = ""
    """The id of its step run, where the attempt has a Prefect task run of its own: in a dynamic pipeline."""


class Listener(Protocol):
    """Who is told of each step's life, as the board learns of it. Attempts count from 1. Neither blocks nor raises."""

    def started(self, step: About, attempt: int, sandbox: str) -> None:
        """An attempt at the step has its sandbox."""

    def retried(self, step: About, attempt: int) -> None:
        """Another attempt begins: this one, after one that failed."""

    def lost(self, step: About, attempt: int, what: str) -> None:
        """Its sandbox was lost, or couldn't be had."""

    def failed(self, step: About, attempt: int, why: str) -> None:
        """An attempt failed; maybe another one follows. ``why`` is "" where only ZenML knows."""

    def finished(self, step: About, attempt: int, state: str) -> None:
        """The step succeeded; ``state`` says how."""


class Nobody:
    """A :class:`Listener` where nobody wants to hear."""

    def started(self, step: About, attempt: int, sandbox: str) -> None:
        """Nothing."""

    def retried(self, step: About, attempt: int) -> None:
        """Nothing."""

    def lost(self, step: About, attempt: int, what: str) -> None:
        """Nothing."""

    def failed(self, step: About, attempt: int, why: str) -> None:
        """Nothing."""

    def finished(self, step: About, attempt: int, state: str) -> None:
        """Nothing."""


class StepTold:
    """What a listener was told of the steps of one run, where ZenML tells of them.

    ``goes_on``: an earlier process of the flow told of what ZenML knows already.
    """

    def __init__(self, listener: Listener, *, goes_on: bool) -> None:
        self._listener = listener
        self.catching_up = goes_on
        """Whether ZenML may still say what an earlier process told: until it was asked for the first time."""
        self._started: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        """By step: the newest attempt of whose beginning, and of whose failure, the listener knows."""

    def follow(self, about: Callable[[int], About], before: int, attempt: int, status: str, sandbox: str) -> None:
        """Tell of what happened since a step was seen last; what was too quick to be seen is told all the same.

        Args:
            about: The step, as one of its attempts has it.
            before: The attempt that it was at then; 0 where it hadn't been seen.
            attempt: The attempt that it is at now.
            status: What ZenML says of that.
            sandbox: The id of its sandbox.
        """
        for number in range(max(1, before), attempt + 1):
            newest, step = number == attempt, about(number)
            if number > max(1, before) and not self.catching_up:
                self._listener.retried(step, number)
            if number > self._started.get(step.step, 0) and not (newest and status in _NOT_STARTED):
                self._started[step.step] = number
                if not self.catching_up:
                    self._listener.started(step, number, sandbox)
            if number > self._failed.get(step.step, 0) and not (newest and status not in _FAILED):
                self._failed[step.step] = number
                if not self.catching_up:
                    self._listener.failed(step, number, "")

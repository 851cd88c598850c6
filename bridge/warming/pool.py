"""Which sandbox a step enters, and which sandboxes a run still needs. Standard library only; no clock, no I/O.

The plan is known, so nothing here guesses: a sandbox is kept as long as a step of its kind may still come, and
started early only where it would be used if all running steps succeed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Generic, TypeVar

Kind = TypeVar("Kind", bound=Hashable)
"""What steps that may share a sandbox have in common."""
Host = TypeVar("Host")


class Pool(Generic[Kind, Host]):
    """The idle sandboxes of one run, and who is in the others.

    Args:
        kinds: The kind of each step.
        upstream: The upstream steps of each step.
        limit: Most sandboxes at once, idle ones included; None for any number.
        early: The steps for which a sandbox may be started before they are ready.
    """

    def __init__(
        self,
        kinds: Mapping[str, Kind],
        upstream: Mapping[str, Collection[str]],
        limit: int | None = None,
        early: Collection[str] = (),
    ) -> None:
        self._kinds = dict(kinds)
        self._early = frozenset(early)
        self._limit = limit
        self._idle: dict[Kind, list[Host]] = {}
        self._ending = 0
        self._closed = False
        self._inside: dict[str, None] = {}
        """The steps that are in a sandbox, in the order in which they entered it."""
        self._given_up: set[str] = set()
        """The steps whose sandbox was started early in vain: nobody came for it in time."""
        self._finished: set[str] = set()
        self._to_come = Counter(self._kinds.values())
        self._missing = {step: len(set(upstream[step])) for step in self._kinds}
        self._downstream: dict[str, list[str]] = {step: [] for step in self._kinds}
        for step in self._kinds:
            for other in set(upstream[step]):
                self._downstream[other].append(step)

    @property
    def idle(self) -> list[Host]:
        """The sandboxes that nobody is in."""
        return [host for hosts in self._idle.values() for host in hosts]

    def enter(self, step: str, fits: Callable[[Host], bool]) -> Host | None:
        """``step`` goes into the idle sandbox that this returns, or into a new one: see :meth:`in_the_way`.

        The last one that was left goes first, so that those which aren't needed stay idle.
        """
        hosts = self._idle.get(self._kinds[step], [])
        found = next((host for host in reversed(hosts) if fits(host)), None)
        if found is not None:
            hosts.remove(found)
        self._inside[step] = None
        self._given_up.difference_update(self._downstream[step])
        self._to_come[self._kinds[step]] -= 1
        return found

    @property
    def has_room(self) -> bool:
        """Whether all steps that are inside may have a sandbox. Ask after :meth:`enter` for who needs a new one."""
        return self._beyond <= 0

    @property
    def _beyond(self) -> int:
        """How many sandboxes there would be beyond the limit, if each step that is inside had one."""
        return 0 if self._limit is None else len(self._inside) + len(self.idle) + self._ending - self._limit

    def begin_end(self) -> None:
        """A sandbox that isn't in the pool any more is being ended: it counts until :meth:`ended`."""
        self._ending += 1

    def ended(self) -> None:
        """A sandbox that was being ended is gone."""
        self._ending -= 1

    def in_the_way(self) -> Host | None:
        """Take out the idle sandbox that has to go before there may be one more; None if there is room.

        None too where there is none, or enough are being ended already. A flow that comes back may find more steps
        inside than the limit lets in: then one of them has to leave first.
        """
        if self._beyond <= self._ending or not self.idle:
            return None
        kind = min((kind for kind, hosts in self._idle.items() if hosts), key=lambda kind: self._to_come[kind])
        return self._idle[kind].pop(0)

    def leave(self, step: str, host: Host | None) -> None:
        """``step`` has left its sandbox, which is idle now; None if the sandbox is no longer to be used."""
        self._inside.pop(step, None)
        self._to_come[self._kinds[step]] += 1
        if host is not None:
            self.add(self._kinds[step], host)

    def add(self, kind: Kind, host: Host) -> None:
        """A sandbox that nobody is in."""
        self._idle.setdefault(kind, []).append(host)

    def remove(self, host: Host) -> bool:
        """An idle sandbox has gone; whether it was one."""
        return self._take_out(host) is not None

    def _take_out(self, host: Host) -> Kind | None:
        for kind, hosts in self._idle.items():
            if host in hosts:
                hosts.remove(host)
                return kind
        return None

    def idled_out(self, host: Host) -> bool:
        """An idle sandbox goes, since nobody came for it in time; whether it was one.

        What it was kept for isn't waited for any more: :meth:`wanted` leaves that out until a step above begins anew.
        """
        kind = self._take_out(host)
        if kind is None:
            return False
        soon = [step for step in self._soon(self._early) if self._kinds[step] == kind]
        # One in any case: what a step has just left, and the next one is about to enter, isn't theirs.
        self._given_up.update(soon[: max(1, self._without_sandbox(soon)[kind])])
        return True

    def finish(self, step: str, *, done: bool = True) -> None:
        """``step`` will never enter a sandbox again, nor, unless it is ``done``, any step below it. Idempotent."""
        if step not in self._finished:
            self._finished.add(step)
            self._to_come[self._kinds[step]] -= 1
            for below in self._downstream[step]:
                self._missing[below] -= done

    def close(self) -> None:
        """No step begins any more: no sandbox is wanted for one, and none is kept for it."""
        self._closed = True

    def superfluous(self) -> list[Host]:
        """Take out the idle sandboxes that no later step can use, the longest idle first."""
        found = []
        for kind, hosts in self._idle.items():
            while len(hosts) > (0 if self._closed else max(0, self._to_come[kind])):
                found.append(hosts.pop(0))
        return found

    def wanted(self, also: Collection[str] = ()) -> list[Kind]:
        """The kinds of which a sandbox should be started now, one entry for each; for the steps ``also`` too.

        Those that the steps will need which become ready when all running ones succeed, beyond the ones that
        are idle and that those steps themselves leave.
        """
        if self._closed:
            return []
        missing = self._without_sandbox(self._soon(self._early.union(also)))
        room = len(self._kinds) if self._limit is None else -self._beyond
        return list(missing.elements())[: max(0, room)]

    def _without_sandbox(self, steps: Collection[str]) -> Counter[Kind]:
        """For how many of these there is none, neither idle nor left by the steps that are inside, by kind."""
        need = Counter(self._kinds[step] for step in steps)
        have = Counter({kind: len(hosts) for kind, hosts in self._idle.items()})
        have.update(self._kinds[step] for step in self._inside)
        return need - have

    def _soon(self, early: Collection[str]) -> list[str]:
        found: Counter[str] = Counter(below for step in self._inside for below in self._downstream[step])
        not_these = self._finished | self._given_up | self._inside.keys()
        return [
            step
            for step, running in found.items()
            if step in early and running >= self._missing[step] and step not in not_these
        ]

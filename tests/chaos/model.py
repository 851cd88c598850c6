"""What may have become of a run: from its case and from what was seen of it, and from nothing of `bridge`.

The rules are those of ``docs/semantics.md``, written down a second time. The model doesn't foresee a run, whose order
nobody knows; it reckons what each step's attempts have cost by the evidence (what its own code wrote down before it
ended, what struck its sandbox and when) and says which ends those costs allow. Where a strike came within moments of
an attempt's own end, either may have counted first, and both ends are allowed.

Standard library only; a test checks that it stays so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.chaos.case import AWAY, FLOOD, FLOW, KILLED, LOST, STOP, WARM_TIMEOUT, Case, StepSpec
from tests.chaos.seen import Attempt, Seen, Strike

MOMENTS = 6.0
"""Seconds between an attempt's last words and the moment at which ZenML surely knows of its end."""
UNHEARD = 30.0
"""The same after ZenML's server was taken away: it has to start, and its client pauses up to ten seconds at a time."""
DYING = 2.0
"""Seconds after a strike in which what was about to begin in its sandbox may still begin."""
LATE = 30.0
"""Seconds after the end of a run was decided at which nothing begins any more."""
FIRST_LINES, LAST_LINES = 9_900, 400
"""Lines of an attempt that are kept whatever it prints, with some room for what isn't the step's."""

SUCCESS = ("completed", "cached")
FINAL = ("completed", "cached", "failed", "stopped")
PREFECT = {"completed": {"Completed"}, "cached": {"Cached"}, "failed": {"Failed"}, "stopped": {"Cancelled"}}
NEVER = {"NotRun", "Cancelled"}
"""A step that ZenML knows nothing of: it never began, or came too late."""


def violations(case: Case, seen: Seen) -> list[str]:
    """Return what is not as it must be, one sentence each."""
    if seen.hung:
        return [f"hung: {seen.hung}"]
    return list(Judge(case, seen).everything())


@dataclass
class _Costs:
    """What a step's attempts have cost, at least and at most."""

    own: list[int] = field(default_factory=lambda: [0, 0])
    lost: list[int] = field(default_factory=lambda: [0, 0])
    lost_in_a_row: list[int] = field(default_factory=lambda: [0, 0])
    """The most losses of one attempt that no own failure comes between."""
    succeeded: bool = False
    maybe_succeeded: bool = False
    unexplained: list[Attempt] = field(default_factory=list)


@dataclass(frozen=True)
class _Closed:
    """Since when no step begins any more, and what else came of that."""

    time: float
    kills: float | None
    """Since when those that ran were ended too."""
    fails: bool = False
    """Whether what ran has failed by it."""

    def killed(self, known: float | None) -> bool:
        """Whether an attempt may have been ended whose own end ZenML surely knows since then; None for never."""
        return self.kills is not None and (known is None or known >= self.kills)


class Judge:
    """What a run of ``per_step`` or ``pipeline`` mode was seen to do, against what it may do."""

    def __init__(self, case: Case, seen: Seen) -> None:
        self.case = case
        self.seen = seen
        self.pipeline = case.mode == "pipeline"
        self.fates = {step.name: self._fate(step.name) for step in case.steps}
        self.struck = [strike for strike in seen.strikes if strike.running and not strike.refused]
        self.struck += self._held_too_long()
        self.costs = {step.name: self._reckon(step) for step in case.steps}
        self.closed = self._closing()

    def everything(self) -> Iterator[str]:
        yield from self._run()
        yield from self._task_of_the_pipeline()
        for step in self.case.steps:
            yield from self._step(step)
            yield from self._attempts(step)
            yield from self._both_sides(step)
        yield from self._limits()
        yield from self._output()

    # ---- what it cost

    def _fate(self, step: str) -> str:
        statuses = self.seen.step_runs.get(step) or ["none"]
        return statuses[-1]

    def _of(self, kinds: Iterable[str]) -> list[Strike]:
        return [strike for strike in self.struck if strike.kind in tuple(kinds)]

    def _held_too_long(self) -> list[Strike]:
        """The timeouts of attempts that waited for a server to come back, for longer than their steps may take."""
        found = []
        for strike in self._of(AWAY):
            if not self.case.has_timeout(self.case.step(strike.step)):
                continue
            for attempt in self.seen.attempts.get(strike.step, ()):
                over = attempt.begin + WARM_TIMEOUT
                boxes = [box for box in self.seen.sandboxes if box.id == attempt.sandbox]
                if attempt.number == strike.attempt and attempt.how is None and any(box.ended >= over for box in boxes):
                    found.append(Strike("timeout", strike.step, attempt.number, attempt.sandbox, over, True))
        return found

    def _stops(self) -> list[Strike]:
        """What stopped the run. The step that it was meant for may have died with the sandbox that others share."""
        return [strike for strike in self.seen.strikes if strike.kind in STOP and not strike.refused]

    def _reckon(self, step: StepSpec) -> _Costs:
        costs, row = _Costs(), [0, 0]
        attempts = self.seen.attempts.get(step.name, ())
        for attempt in attempts:
            strike = self._strike_on(attempt)
            if attempt.ended is not None and (strike is None or strike.time > self._known_since(attempt)):
                strike = None
            own, lost = self._cost(attempt, strike)
            if attempt.how == "end":
                costs.maybe_succeeded = True
                costs.succeeded = costs.succeeded or strike is None
            if attempt.ended is None and strike is None:
                costs.unexplained.append(attempt)
            for total, more in ((costs.own, own), (costs.lost, lost)):
                total[0] += more[0]
                total[1] += more[1]
            row = [0, row[1] + lost[1]] if own[1] else [row[0] + lost[0], row[1] + lost[1]]
            costs.lost_in_a_row = [max(costs.lost_in_a_row[0], row[0]), max(costs.lost_in_a_row[1], row[1])]
            if own[0]:
                row = [0, 0]
        for strike in self._unseen(attempts, step):
            total = costs.lost if strike.kind in LOST else costs.own
            total[1] += 1
            costs.lost_in_a_row[1] += strike.kind in LOST
        costs.lost[1] += self.case.init_failures
        costs.lost_in_a_row[1] += self.case.init_failures
        return costs

    def _strike_on(self, attempt: Attempt) -> Strike | None:
        """The first strike that ended the attempt's sandbox while, or moments after, it ran."""
        for strike in self._of((*LOST, *KILLED)):
            if strike.sandbox == attempt.sandbox and (strike.time >= attempt.begin or self._too_late(attempt, strike)):
                return strike
        return None

    def _too_late(self, attempt: Attempt, strike: Strike) -> bool:
        """Whether an attempt began in a sandbox that was dying of a strike on another step: its host lives to the end.

        Not in other modes: one step at a time, the struck one, is in such a sandbox.
        """
        return (
            self.pipeline
            and strike.sandbox == attempt.sandbox
            and strike.time < attempt.begin <= strike.time + DYING
            and any(box.id == attempt.sandbox and box.ended <= strike.time + MOMENTS for box in self.seen.sandboxes)
        )

    def _is_lost(self, attempt: Attempt, strike: Strike) -> bool:
        """Whether a strike wasn't the step's fault: in a warm sandbox the time that others have spent isn't either."""
        if strike.kind != "timeout" or self.case.kind != "warm" or self.case.has_timeout(self.case.step(strike.step)):
            return strike.kind in LOST
        everybody = (one for attempts in self.seen.attempts.values() for one in attempts)
        return any(one.sandbox == attempt.sandbox and one.begin < attempt.begin for one in everybody)

    def _cost(self, attempt: Attempt, strike: Strike | None) -> tuple[tuple[int, int], tuple[int, int]]:
        """What an attempt cost, at least and at most: of the step's own retries, of infrastructure retries."""
        lost = strike is not None and self._is_lost(attempt, strike)
        if attempt.how == "end":
            return ((0, int(strike is not None and not lost)), (0, int(lost)))
        if attempt.how == "fail":
            return ((0, 1), (0, 1)) if lost else ((1, 1), (0, 0))
        if strike is None:
            return ((0, 0), (0, 0))
        return ((0, 0), (1, 1)) if lost else ((1, 1), (0, 0))

    def _unseen(self, attempts: Iterable[Attempt], step: StepSpec) -> list[Strike]:
        """Strikes that may have ended an attempt before its own code ran: in ``pipeline`` mode they hit all of it."""
        if not self.pipeline:
            return []
        found = []
        for strike in self._of((*LOST, *KILLED)):
            open_ones = [a for a in attempts if self._ran_at(a, strike.time) or self._too_late(a, strike)]
            over = any(a.how == "end" and self._known_since(a) < strike.time for a in attempts)
            if not open_ones and not over and all(self._done_before(name, strike.time) for name in step.upstream):
                found.append(strike)
        return found

    def _ran_at(self, attempt: Attempt, time: float) -> bool:
        """Whether an attempt ran at that time: from its first word to its last, or to what ended it."""
        strike = self._strike_on(attempt)
        return attempt.begin <= time <= (attempt.ended or (time if strike is None else strike.time))

    def _done_before(self, step: str, time: float) -> bool:
        if self.case.step(step).cached:
            return True
        return any(a.how == "end" and (a.ended or 0) <= time for a in self.seen.attempts.get(step, ()))

    # ---- when it was over

    def _closing(self) -> _Closed | None:
        found = [_Closed(strike.time, kills=strike.time) for strike in self._stops()]
        failed = [time for step in self.case.steps if (time := self._failed_at(step)) is not None]
        if failed and self.case.failure_mode != "continue_on_failure":
            found.append(_Closed(min(failed), kills=min(failed) if self.case.failure_mode == "fail_fast" else None))
        found += [_Closed(time, kills=time, fails=True) for time in self._run_is_over_at()]
        if self.seen.failed_without_flow is not None:
            time = self.seen.failed_without_flow
            found.append(_Closed(time, kills=time, fails=True))
        if not found:
            return None
        kills = min((closed.kills for closed in found if closed.kills is not None), default=None)
        return _Closed(min(closed.time for closed in found), kills, any(closed.fails for closed in found))

    def _failed_at(self, step: StepSpec) -> float | None:
        """When a step failed for good, as far as what it wrote down can tell."""
        costs, most = self.costs[step.name], self.case.infrastructure_retries
        if self.fates[step.name] != "failed" or not (costs.own[1] > step.retries or costs.lost_in_a_row[1] > most):
            return None  # one that was given up isn't what closed the run
        attempts = self.seen.attempts.get(step.name, ())
        times = [attempt.ended or self._struck_at(attempt) for attempt in attempts if attempt.how != "end"]
        if costs.own[0] <= step.retries and costs.lost_in_a_row[0] <= most:
            # What its own code wrote down doesn't explain it: something struck an attempt before its code ran.
            times += [strike.time for strike in self._unseen(attempts, step)]
        return max(times, default=self._last_end())

    def _last_end(self) -> float:
        """When nothing ran any more, where nothing tells more."""
        return max((box.ended for box in self.seen.sandboxes), default=0.0)

    def _struck_at(self, attempt: Attempt) -> float:
        strike = self._strike_on(attempt)
        return strike.time if strike is not None else attempt.begin

    def _run_is_over_at(self) -> Iterator[float]:
        """When a sandbox of ``pipeline`` mode was the last: its time was over, or too many were lost."""
        if not self.pipeline:
            return
        for strike in self._of(("timeout",)):
            yield strike.time
        lost = self._of(LOST)
        if len(lost) + self.case.init_failures > self.case.infrastructure_retries:
            yield lost[-1].time if lost else self._last_end()

    # ---- what has to be

    def _run(self) -> Iterator[str]:
        fates = set(self.fates.values())
        if "failed" in fates:
            expected = {("failed", "Failed")}
        elif fates <= set(SUCCESS):
            expected = {("completed", "Completed")}
        else:
            expected = {("stopped", "Cancelled")}
        if stops := self._stops():
            stopped, by_itself = {("stopped", "Cancelled")}, expected
            expected = {("failed", "Cancelled"), ("failed", "Failed")} if "failed" in fates else stopped
            if not any(strike.running for strike in stops):
                expected |= by_itself  # it may have come when nothing was left to be stopped
            # Of a run that is being stopped ZenML says stopped, also where a step fails meanwhile.
            first = min(strike.time for strike in stops)
            failed = [step.name for step in self.case.steps if self.fates[step.name] == "failed"]
            if all(self._ended_after(step, first - MOMENTS) for step in failed):
                expected |= stopped
        if (self.seen.run, self.seen.flow_run) not in expected:
            yield f"the run is {self.seen.run} in ZenML and {self.seen.flow_run} in Prefect, not {sorted(expected)}"

    def _ended_after(self, step: str, time: float) -> bool:
        """Whether an attempt at a step may have come to its end after ``time``."""
        return any(a.ended is None or a.ended > time for a in self.seen.attempts.get(step, ()))

    def _step(self, step: StepSpec) -> Iterator[str]:
        fate, costs = self.fates[step.name], self.costs[step.name]
        if fate not in (*FINAL, "none"):
            yield f"{step.name} is {fate} at the end"
            return
        if any(self.fates[name] not in SUCCESS for name in step.upstream):
            if fate != "none" or self.seen.attempts.get(step.name):
                yield f"{step.name} is {fate} although not all of {step.upstream} succeeded"
            return
        allowed = self._allowed(step, costs)
        if fate not in allowed:
            why = f"own failures {costs.own}, retries {step.retries}, losses {costs.lost}"
            yield f"{step.name} is {fate}, not {' or '.join(sorted(allowed))}: {why}"
        if fate == "completed" and not costs.maybe_succeeded:
            yield f"{step.name} is completed although its code never came to its end"

    def _allowed(self, step: StepSpec, costs: _Costs) -> set[str]:
        if step.cached:
            return {"cached"} if self.closed is None else {"cached", "none"}
        most = self.case.infrastructure_retries
        must_fail = costs.own[0] > step.retries or costs.lost_in_a_row[0] > most
        may_fail = costs.own[1] > step.retries or costs.lost_in_a_row[1] > most
        allowed = {"failed"} if must_fail else {"completed", "failed"} if may_fail else {"completed"}
        if self.closed is None:
            return allowed
        attempts = self.seen.attempts.get(step.name, ())
        last = max((self._known_since(attempt) for attempt in attempts), default=None)
        if costs.succeeded and last is not None and last < self.closed.time:
            return {"completed"}
        if not attempts:
            allowed = allowed | {"none"}
        if costs.own[1]:
            allowed = allowed | {"failed", "stopped"}  # given up while it waited for its retry
        if self.closed.fails:
            allowed = allowed | {"failed"}
        return allowed | {"stopped"} if self.closed.killed(last if costs.succeeded else None) else allowed

    def _attempts(self, step: StepSpec) -> Iterator[str]:
        attempts, costs = self.seen.attempts.get(step.name, ()), self.costs[step.name]
        if step.cached and attempts:
            yield f"{step.name} ran although its result is in the cache"
            return
        for attempt in attempts:
            if attempt.beside:
                yield f"{step.name}: attempt {attempt.number} began while processes {attempt.beside} of it still ran"
            late = [name for name in step.upstream if not self._done_before(name, attempt.begin)]
            if late:
                yield f"{step.name} began before {late} had ended"
            if self.closed is not None and attempt.begin > self.closed.time + LATE:
                yield f"{step.name} began {attempt.begin - self.closed.time:.0f} s after the run was over"
        ends = [attempt for attempt in attempts if attempt.how == "end" and self._certain(attempt)]
        if len(ends) > 1:
            yield f"{step.name} succeeded {len(ends)} times"
        if ends and attempts[-1].begin > (ends[0].ended or 0):
            yield f"{step.name} ran again after it had succeeded"
        if costs.own[0] > step.retries + 1:
            yield f"{step.name} was tried {costs.own[0]} times with {step.retries} retries"
        if costs.unexplained and not (self.closed is not None and self.closed.killed(None)):
            for attempt in costs.unexplained:
                yield f"{step.name}: attempt {attempt.number} was ended by nobody who may"
        yield from self._counted(step)

    def _certain(self, attempt: Attempt) -> bool:
        strike = self._strike_on(attempt)
        return strike is None or (attempt.ended is not None and strike.time > self._known_since(attempt))

    def _known_since(self, attempt: Attempt) -> float:
        """Since when ZenML surely knows how an attempt ended."""
        end = attempt.ended or self._struck_at(attempt)
        away = [
            strike.time for strike in self._of(("zenml away",)) if strike.time - MOMENTS <= end <= strike.time + UNHEARD
        ]
        return max([end + MOMENTS, *(time + UNHEARD for time in away)])

    def _counted(self, step: StepSpec) -> Iterator[str]:
        """Both sides' own counts of the attempts."""
        costs = self.costs[step.name]
        versions, task_run = len(self.seen.step_runs.get(step.name, ())), self.seen.task_runs.get(step.name)
        least, most = costs.own[0] + 1, min(costs.own[1], step.retries) + 1
        if versions > step.retries + 1:
            yield f"ZenML has {versions} step runs of {step.name}, with {step.retries} retries"
        if self.fates[step.name] != "completed":
            if task_run is not None and task_run.run_count > step.retries + 1:
                yield f"Prefect counts {task_run.run_count} attempts of {step.name}, with {step.retries} retries"
            return
        if not least <= versions <= most:
            yield f"ZenML has {versions} step runs of {step.name}, not {least} to {most}"
        if task_run is not None and not least <= task_run.run_count <= most:
            yield f"Prefect counts {task_run.run_count} attempts of {step.name}, not {least} to {most}"

    def _both_sides(self, step: StepSpec) -> Iterator[str]:
        if self.pipeline:
            return
        task_run, fate = self.seen.task_runs.get(step.name), self.fates[step.name]
        if task_run is None and fate == "none" and self.seen.failed_without_flow is not None:
            return  # no flow was there any more to say that it didn't run
        if task_run is None:
            yield f"Prefect has no task run of {step.name}"
        elif task_run.state not in PREFECT.get(fate, NEVER):
            yield f"{step.name} is {fate} in ZenML and {task_run.state} in Prefect ({task_run.message[:120]})"

    def _task_of_the_pipeline(self) -> Iterator[str]:
        """The task run of ``pipeline`` mode says what its flow run does; of a stopped one with failed steps, either."""
        if not self.pipeline or self.seen.failed_without_flow is not None:
            return
        states = {task_run.state for task_run in self.seen.task_runs.values()}
        failed = self.seen.run == "failed" or "failed" in self.fates.values()
        allowed = {self.seen.flow_run} | ({"Failed", "Cancelled"} if failed else set())
        if len(self.seen.task_runs) > 1 or not states <= allowed:
            yield f"the pipeline's task runs are {sorted(states)}, its flow run is {self.seen.flow_run}"
        most = 1 + self.case.infrastructure_retries + len(self._of((*LOST, *KILLED))) + self.case.init_failures
        for task_run in self.seen.task_runs.values():
            if task_run.run_count > most:
                yield f"Prefect counts {task_run.run_count} sandboxes of the pipeline, not up to {most}"

    # ---- limits

    def _limits(self) -> Iterator[str]:
        if self.seen.alive:
            yield f"sandboxes live on: {', '.join(self.seen.alive)}"
        most = self.case.max_parallelism
        if most is None:
            return
        sandboxes = most_at_once((box.created, box.ended) for box in self.seen.sandboxes)
        if sandboxes > (1 if self.pipeline else most):
            yield f"{sandboxes} sandboxes at once, with max_parallelism {most}"
        steps = most_at_once(self._spans())
        if steps > most:
            yield f"{steps} steps at once, with max_parallelism {most}"

    def _spans(self) -> Iterator[tuple[float, float]]:
        ends = {box.id: box.ended for box in self.seen.sandboxes}
        for attempts in self.seen.attempts.values():
            for attempt in attempts:
                yield attempt.begin, attempt.ended or min(self._struck_at(attempt), ends.get(attempt.sandbox, 0.0))

    # ---- output

    def _output(self) -> Iterator[str]:
        logs = self.seen.logs.get("", ()) if self.pipeline else None
        by_step = _by_step(logs) if logs is not None else {}
        flooded = self.pipeline and sum(len(lines) for lines in by_step.values()) > FIRST_LINES
        for step in self.case.steps:
            lines = (
                by_step.get(step.name, [])
                if self.pipeline
                else _by_step(self.seen.logs.get(step.name, ())).get(step.name, [])
            )
            before = 0
            for attempt in self.seen.attempts.get(step.name, ()):
                found = [line for number, line in lines if number == attempt.number]
                yield from self._lines(step, attempt, found, FIRST_LINES - before, flooded)
                # One that goes on after a loss has one log, and one cap, with what was lost.
                strike = self._strike_on(attempt)
                before = before + len(found) if strike is not None and strike.kind in LOST else 0

    def _lines(self, step: StepSpec, attempt: Attempt, found: list[int], first: int, flooded: bool) -> Iterator[str]:
        where = f"the log of {step.name}, attempt {attempt.number},"
        if len(set(found)) < len(found):
            yield f"{where} has lines twice"
        if found != sorted(found):
            yield f"{where} is out of order"
        if attempt.how is None or flooded or not self._certain(attempt) or self._unread(attempt):
            return
        kept = set(range(step.lines))
        if step.lines >= FLOOD:
            kept = set(range(first)) | set(range(step.lines - LAST_LINES, step.lines))
        if missing := sorted(kept - set(found)):
            yield f"{where} lacks {len(missing)} of {step.lines} lines, the first being {missing[0]}"

    def _unread(self, attempt: Attempt) -> bool:
        """Whether it ended when its run had failed and no flow was there any more: none comes back to read it."""
        if self.seen.failed_without_flow is None or attempt.ended is None:
            return False
        return any(strike.time < attempt.ended + MOMENTS for strike in self._of(FLOW))


_LINE = re.compile(r"(?:\[[^]]*\] )?(s\d+) (\d+) line (\d+)$")


def _by_step(messages: Iterable[str]) -> dict[str, list[tuple[int, int]]]:
    """By step: attempt and line, in order."""
    found: dict[str, list[tuple[int, int]]] = {}
    for message in messages:
        if match := _LINE.match(message):
            found.setdefault(match[1], []).append((int(match[2]), int(match[3])))
    return found


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    moments = [moment for begin, end in spans if end > begin for moment in ((begin, 1), (end, -1))]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most

"""A random pipeline and what is to happen to it, made from one seed. Standard library only."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

LOST = ("evict", "lose")
"""What strikes a step's sandbox and isn't the step's fault: an infrastructure retry."""
KILLED = ("oom", "terminate", "kill", "timeout")
"""What strikes it and costs one of the step's own retries."""
FLOW = ("kill flow", "kill flow, step ends meanwhile")
AWAY = ("prefect away", "zenml away", "modal away")
STREAM = ("slow stream", "broken stream")
STOP = ("cancel", "stop", "interrupt")
KINDS = (*LOST, *KILLED, *FLOW, *AWAY, *STREAM, *STOP)
FUNCTION = ("evict function", "lose function")
"""What strikes the sandbox of a dynamic pipeline's function, while the step waits in its own."""
DYNAMIC_KINDS = (*KINDS, *FUNCTION)

_WEIGHTS = {
    "evict": 6,
    "lose": 4,
    "oom": 5,
    "terminate": 4,
    "kill": 4,
    "timeout": 3,
    "kill flow": 7,
    "kill flow, step ends meanwhile": 6,
    "prefect away": 2,
    "zenml away": 2,
    "modal away": 4,
    "slow stream": 4,
    "broken stream": 4,
    "cancel": 4,
    "stop": 3,
    "interrupt": 3,
}
_DYNAMIC_WEIGHTS = {**_WEIGHTS, "evict function": 6, "lose function": 4}
WARM_TIMEOUT = 15
"""Seconds a warm step may take that is to run into its timeout."""
FLOOD = 10_700
"""Lines that are more than are kept: 10,000 from the start and 500 from the end of an attempt."""


@dataclass(frozen=True)
class StepSpec:
    """One step: how its own code behaves, and what strikes which of its attempts."""

    name: str
    upstream: tuple[str, ...] = ()
    cached: bool = False
    """Whether ZenML has its result already."""
    retries: int = 0
    delay: int = 0
    failures: int = 0
    """How many attempts fail by the step's own doing before one succeeds."""
    how: str = "raise"
    """How they fail: ``raise``, ``exit`` (with 0, without a word to ZenML), ``die`` (by its own SIGKILL)."""
    lines: int = 3
    seconds: float = 0.0
    big: bool = False
    """Whether it asks for more memory than the others, and so for another kind of sandbox."""
    strikes: Mapping[int, str] = field(default_factory=dict)
    """By attempt, from 1: what is to strike it. It waits until that has happened."""


@dataclass(frozen=True)
class Case:
    """One run."""

    seed: int
    steps: tuple[StepSpec, ...]
    mode: str
    """``pipeline`` or ``per_step``; or ``dynamic``, a dynamic pipeline whose steps have sandboxes of their own."""
    warm: bool
    failure_mode: str
    max_parallelism: int | None
    infrastructure_retries: int
    backend: int
    """Modal's, 1 or 2."""
    init_failures: int
    """How many of its first sandboxes don't come up."""
    lost_replies: int
    """How many creates are made without their answer arriving."""
    killed_again: float = 0.0
    """Seconds after which a flow that has come back is killed once more, wherever it is then; 0 if it isn't."""

    def step(self, name: str) -> StepSpec:
        return next(step for step in self.steps if step.name == name)

    @property
    def kind(self) -> str:
        """Mode and warmth, in a word."""
        return self.mode if self.mode != "per_step" else ("warm" if self.warm else "cold")

    def has_timeout(self, step: StepSpec) -> bool:
        """Whether a step has a timeout of its own, :data:`WARM_TIMEOUT`; else only its sandbox can time out."""
        return self.kind == "warm" and not step.big and "timeout" in step.strikes.values()

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        planned = [f"{step.name}#{number} {kind}" for step in self.steps for number, kind in step.strikes.items()]
        killed = any(kind in FLOW for step in self.steps for kind in step.strikes.values()) and self.killed_again
        again = f", again after {self.killed_again} s" if killed else ""
        return (
            f"seed {self.seed}: {len(self.steps)} steps, {self.kind}, {self.failure_mode}, "
            f"most {self.max_parallelism}, V{self.backend}; {'; '.join(planned) or 'no fault'}{again}"
        )


def make_case(seed: int, *, small: bool = False) -> Case:
    """The case of a seed; the same one on every machine. ``small`` has few steps, all in one sandbox or warm ones."""
    chance = random.Random(seed)
    kind = chance.choice(["pipeline", "warm"] if small else ["pipeline"] * 5 + ["warm"] * 5 + ["cold"] * 2)
    number = _number(chance, kind, small)
    width = chance.choice([1, 2, 3, number])
    steps = [_step(chance, index, width) for index in range(number)]
    return _case(chance, seed, _with_strikes(chance, seed, steps, 2 if small else 4, _WEIGHTS), kind, small)


def make_dynamic_case(seed: int) -> Case:
    """The case of a seed that is a dynamic pipeline. Each attempt costs an interpreter, so it has few steps."""
    chance = random.Random(f"dynamic {seed}")
    number = chance.randint(4, 8)
    steps = [_step(chance, index, chance.choice([1, 2, number])) for index in range(number)]
    return _case(chance, seed, _with_strikes(chance, seed, steps, 3, _DYNAMIC_WEIGHTS), "dynamic")


def _case(chance: random.Random, seed: int, steps: list[StepSpec], kind: str, small: bool = False) -> Case:
    failing = chance.random() < 0.35
    return Case(
        seed=seed,
        steps=tuple(step if failing else _lucky(step) for step in steps),
        mode=kind if kind in ("pipeline", "dynamic") else "per_step",
        warm=kind in ("pipeline", "warm"),
        failure_mode=chance.choice(["continue_on_failure"] * 3 + ["fail_fast", "stop_on_failure"] * 2),
        max_parallelism=chance.choice([1, 2, 2, 3, 4]),
        infrastructure_retries=chance.choice([3, 3, 3, 1]),
        backend=chance.choice([2, 2, 2, 1]),
        init_failures=int(chance.random() < 0.1),
        lost_replies=int(chance.random() < 0.1),
        killed_again=0.0 if small else _killed_again(seed),
    )


def _killed_again(seed: int) -> float:
    # Dice of its own, so that the cases of all seeds stay what they were but for this.
    chance = random.Random(f"killed again {seed}")
    return round(chance.uniform(0.1, 6), 1) if chance.random() < 0.5 else 0.0


def _number(chance: random.Random, kind: str, small: bool) -> int:
    if small:
        return chance.randint(5, 7)
    if kind == "cold":
        return chance.randint(5, 8)
    if kind == "warm":
        return chance.choice([chance.randint(5, 12), chance.randint(5, 25)])
    return chance.choice([chance.randint(5, 15), chance.randint(5, 15), chance.randint(15, 60)])


def _step(chance: random.Random, index: int, width: int) -> StepSpec:
    before = [f"s{other}" for other in range(max(0, index - 2 * width), index)]
    number = min(len(before), chance.choice([0, 1, 1, 1, 2, 3]) if index else 0)
    cached = chance.random() < 0.2
    retries = chance.choice([0, 0, 1, 2])
    failures = chance.choice([0] * 5 + [1, 1, 2])
    return StepSpec(
        name=f"s{index}",
        upstream=tuple(sorted(chance.sample(before, number), key=lambda name: int(name[1:]))),
        cached=cached,
        retries=0 if cached else retries,
        delay=chance.choice([0, 0, 0, 1]),
        failures=0 if cached else failures,
        how=chance.choice(["raise", "raise", "raise", "exit", "die"]),
        lines=FLOOD if chance.random() < 0.005 else chance.choice([0, 2, 5, 40]),
        seconds=chance.choice([0.0, 0.0, 0.2, 0.5]),
        big=chance.random() < 0.1,
    )


def _lucky(step: StepSpec) -> StepSpec:
    """A step that fails no more often than it may: else most runs would be over soon."""
    struck = sum(kind in KILLED for kind in step.strikes.values())
    retries = max(step.retries, struck)
    return _changed(step, failures=min(step.failures, retries - struck), retries=retries)


def _with_strikes(
    chance: random.Random, seed: int, steps: list[StepSpec], most: int, weights: Mapping[str, int]
) -> list[StepSpec]:
    able = [step.name for step in steps if not step.cached]
    struck: dict[str, dict[int, str]] = {}
    stopped = False
    for count in range(chance.randint(1, most)):
        if not able:
            break
        # Each kind has its turn, whatever the dice say.
        what = chance.choices(list(weights), list(weights.values()))[0] if count else [*weights][seed % len(weights)]
        if what in STOP and stopped:
            continue
        stopped = stopped or what in STOP
        name = chance.choice(able)
        strikes = struck.setdefault(name, {})
        strikes[len(strikes) + 1] = what
        if what in STOP:
            able.remove(name)
    return [_changed(step, strikes=struck.get(step.name, {})) for step in steps]


def _changed(step: StepSpec, **changes: object) -> StepSpec:
    return StepSpec(**{**{name: getattr(step, name) for name in StepSpec.__dataclass_fields__}, **changes})  # type: ignore[arg-type]

"""What is compared: the scenarios, and the ways to run each. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Way:
    """One way to run a pipeline.

    Args:
        stack: A name of :mod:`tests.bench.compare.stacks`.
        settings: Of the orchestrator.
        dynamic: Whether the dynamic twin of the pipeline runs.
        local: Whether steps are processes of this machine, with ZenML's store on SQLite, as on a laptop.
    """

    name: str
    stack: str
    settings: Mapping[str, object] = field(default_factory=dict)
    dynamic: bool = False
    local: bool = False

    @property
    def ours(self) -> bool:
        """Whether this package runs it."""
        return self.stack.startswith("ours")


PER_STEP = {"execution_mode": "per_step"}
WARM = Way("per_step warm", "ours", PER_STEP)
COLD = Way("per_step cold", "ours", {**PER_STEP, "warm": False})
PIPELINE = Way("pipeline", "ours", {"execution_mode": "pipeline"})
NATIVE = Way("native static", "native")
NATIVE_DYNAMIC = Way("native dynamic", "native", dynamic=True)
LOCAL = Way("local per_step", "ours local", PER_STEP, local=True)
LOCAL_PIPELINE = Way("local pipeline", "ours local", {"execution_mode": "pipeline"}, local=True)
ZENML_LOCAL = Way("zenml local", "zenml local", local=True)

WAYS = (WARM, PIPELINE, NATIVE, NATIVE_DYNAMIC, COLD, LOCAL, LOCAL_PIPELINE, ZENML_LOCAL)
COLD_STARTS = (2.0, 0.0)
"""Seconds between a sandbox's scheduling and its process."""


@dataclass(frozen=True)
class Scenario:
    """A pipeline, how many steps it has, and what of ours it is run with.

    With ``sampled``, the process says what it did until its first sandbox (:mod:`tests.bench.compare.startup`), which
    costs it a little. With ``after``, it is what a second call in the same process takes, once every sandbox of the
    first one has ended; the first call is a measurement of the scenario named there.
    """

    name: str
    pipeline: str
    steps: int
    arguments: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    ways: tuple[Way, ...] = WAYS
    cold_starts: tuple[float, ...] = COLD_STARTS
    sampled: bool = False
    after: str | None = None


ON_MODAL = (WARM, PIPELINE, NATIVE, NATIVE_DYNAMIC)
SCENARIOS = (
    Scenario("training", "training", 7),
    Scenario("training, second run", "training", 7, ways=ON_MODAL, cold_starts=(2.0,), after="training"),
    Scenario("chain 20", "chain", 20, {"length": 20}),
    Scenario("diamond", "diamond", 4),
    Scenario("fan-out 8", "fan_out", 9, {"width": 8}, {"max_parallelism": 8}),
    Scenario("fan-out 50", "fan_out", 51, {"width": 50}, {"max_parallelism": 8}),
    # Not one of the pipelines of a user: what one sandbox is worth where two steps have work at the same time.
    Scenario("two branches", "branches", 3, {"seconds": 10.0}, ways=(PIPELINE, NATIVE_DYNAMIC), cold_starts=(2.0,)),
    Scenario("start-up", "diamond", 4, ways=(PIPELINE, NATIVE_DYNAMIC), cold_starts=(0.0,), sampled=True),
)


@dataclass(frozen=True, order=True)
class Cell:
    """One row of the table: a scenario, run one way, with one cold start (0 where nothing is cold)."""

    scenario: str
    way: str
    cold_start: float


def cells(scenarios: tuple[Scenario, ...] = SCENARIOS) -> list[Cell]:
    """All rows."""
    return [
        Cell(scenario.name, way.name, 0.0 if way.local else cold_start)
        for cold_start in COLD_STARTS
        for scenario in scenarios
        for way in scenario.ways
        if (cold_start == COLD_STARTS[0] if way.local else cold_start in scenario.cold_starts)
    ]


def scenario(name: str, scenarios: tuple[Scenario, ...] = SCENARIOS) -> Scenario:
    """The scenario of that name."""
    return next(each for each in scenarios if each.name == name)


def way(name: str) -> Way:
    """The way of that name."""
    return next(each for each in WAYS if each.name == name)


@dataclass(frozen=True)
class Goal:
    """What a row should reach: ``figure`` of one way over the same of another, or a figure by itself."""

    scenario: str
    figure: str
    ours: Way
    against: Way | None
    cold_start: float
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        bound = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        over = f"{self.against.name} ÷ " if self.against else ""
        return f"{self.scenario}: {self.figure}, {over}{self.ours.name} {bound}"


GOALS = (
    Goal("chain 20", "wall_s", WARM, NATIVE, 2.0, least=6.5),
    Goal("chain 20", "sandbox_s", WARM, NATIVE, 2.0, least=12),
    Goal("diamond", "wall_s", WARM, NATIVE, 2.0, least=2.5),
    Goal("fan-out 50", "wall_s", WARM, NATIVE, 2.0, least=4.5),
    Goal("chain 20", "wall_s", PIPELINE, NATIVE_DYNAMIC, 2.0, least=1),
    Goal("diamond", "wall_s", PIPELINE, NATIVE_DYNAMIC, 2.0, least=1),
    Goal("fan-out 8", "wall_s", PIPELINE, NATIVE_DYNAMIC, 2.0, least=1),
    Goal("two branches", "wall_s", PIPELINE, NATIVE_DYNAMIC, 2.0, least=1.3),
    Goal("chain 20", "step_s", WARM, None, 0.0, most=0.5),
    Goal("chain 20", "wall_s", LOCAL, None, 0.0, most=15),
    Goal("start-up", "ours_s", PIPELINE, None, 0.0, most=2),
)


def core() -> list[Cell]:
    """The rows that the goals and the first pipeline need; all the others make the table wider, and take far longer."""
    wanted = {
        Cell(goal.scenario, way.name, 0.0 if way.local else goal.cold_start)
        for goal in GOALS
        for way in (goal.ours, goal.against)
        if way is not None
    }
    wanted |= {Cell(each.name, way.name, COLD_STARTS[0]) for each in SCENARIOS[:2] for way in ON_MODAL}
    wanted |= {Cell("start-up", way.name, 0.0) for way in (PIPELINE, NATIVE_DYNAMIC)}
    return [cell for cell in cells() if cell in wanted]


def urgency(cell: Cell) -> int:
    """Which cells to measure before which, 0 first: a run may be cut short.

    Last are fifty steps side by side without a cold start, which two cores bound whatever it is, and the second of our
    two ways on a laptop.
    """
    local = way(cell.way).local
    if cell in core():
        return 0
    if cell.way == LOCAL_PIPELINE.name or (cell.scenario == "fan-out 50" and not local and not cell.cold_start):
        return 3
    return 1 if local or cell.cold_start else 2

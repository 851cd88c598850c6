"""What a run would do, for a person to read before it does: graph, commands, machines, images, shared sandboxes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from bridge.plan import Mode, Plan, SandboxSpec, StepPlan
from bridge.planning.prices import NoPrices, Prices, an_hour
from bridge.settings import ModalPrefectOrchestratorSettings
from bridge.warming.kinds import sharing

_HERE = "this machine's Python"
_USUAL_RETRIES: int = ModalPrefectOrchestratorSettings.model_fields["infrastructure_retries"].default


def describe(plan: Plan, runner: str, *, can_share: bool, prices: Prices | NoPrices | None = None) -> Iterator[str]:
    """Yield the lines.

    Args:
        plan: The plan.
        runner: The component's ``runner``.
        can_share: Whether steps can take turns in a sandbox of this runner.
        prices: What machines cost, or why nobody knows; None where they cost nothing.
    """
    known = prices if isinstance(prices, Prices) else None
    number = "steps known as it runs" if plan.mode is Mode.DYNAMIC else _count(len(plan.steps), "step")
    yield f"{plan.pipeline}: {number}, mode {plan.mode.value}, runner {runner}"
    yield f"  snapshot {plan.snapshot_id}, stack `{plan.stack}`"
    most = f", at most {plan.max_parallelism} steps at once" if plan.max_parallelism else ""
    yield f"  after a failure: {plan.failure_mode.value}{most}"
    yield ""
    if plan.mode is not Mode.DYNAMIC:
        yield from _graph(plan)
    if plan.mode.in_one_sandbox:
        yield from _one_sandbox(plan, known)
    else:
        yield from _sandboxes(plan, can_share, known)
    if prices is not None:
        yield ""
        yield from _about(prices)


def _graph(plan: Plan) -> Iterator[str]:
    yield "Graph (a step starts as soon as what it follows has ended; steps of a stage don't need each other)"
    for number, stage in enumerate(stages(plan), 1):
        for name in stage:
            after = plan.step(name).upstream
            yield f"  {number}  {name}" + (f"  <- {', '.join(after)}" if after else "")
    yield ""


def stages(plan: Plan) -> list[list[str]]:
    """The steps by the length of the longest way to them."""
    depth: dict[str, int] = {}
    for step in plan.steps:  # upstream before downstream
        depth[step.name] = 1 + max((depth[above] for above in step.upstream), default=-1)
    found: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name, number in depth.items():
        found[number].append(name)
    return found


def _about(prices: Prices | NoPrices) -> Iterator[str]:
    if isinstance(prices, NoPrices):
        yield f"Prices: none, {prices.why}. `modal billing rates` shows those of your workspace."
    else:
        yield "Prices are those that Modal's API tells of your workspace. They leave out what it adds for a region, and"
        yield "what a step uses beyond what it asks for."
    yield "The run's table in Prefect shows what it costs."


def _one_sandbox(plan: Plan, prices: Prices | None) -> Iterator[str]:
    if plan.mode is Mode.DYNAMIC:
        yield "One sandbox for the pipeline's function and the inline steps; each isolated step has one of its own"
    else:
        yield "One sandbox for all steps"
    yield from _spec(plan.sandbox, prices)
    yield f"  command: <bridge> {shlex.join(plan.command)}"
    if plan.mode is Mode.DYNAMIC:
        yield from _extras(plan.infrastructure_retries, None)
        if plan.concurrency_limit:
            yield f"  each isolated step holds a slot of the Prefect limit {plan.concurrency_limit}"
        return
    yield from _extras(plan.infrastructure_retries, plan.concurrency_limit)
    for step in plan.steps:
        if note := _of_step(step):
            yield f"  {step.name}: {note}"


def _sandboxes(plan: Plan, can_share: bool, prices: Prices | None) -> Iterator[str]:
    kinds = sharing(plan) if plan.warm and can_share else {}
    groups: dict[SandboxSpec, list[StepPlan]] = {}
    for step in plan.steps:
        if step.name in kinds:
            groups.setdefault(kinds[step.name], []).append(step)
    for number, members in enumerate(groups.values(), 1):
        yield f"Warm sandboxes {number}: {_count(len(members), 'step')} take turns, idle ones end after " + (
            f"{plan.warm_idle_timeout} s"
        )
        yield from _spec(members[0].sandbox, prices, with_timeout=False)
        for step in members:
            yield from _step(step)
        yield ""
    for step in plan.steps:
        if step.name not in kinds:
            yield f"A sandbox of its own: {step.name}"
            yield from _spec(step.sandbox, prices)
            yield from _step(step)
            yield ""


def _spec(spec: SandboxSpec, prices: Prices | None, *, with_timeout: bool = True) -> Iterator[str]:
    yield f"  machine: {spec.resources}"
    if prices is not None:
        yield f"  cost:    {an_hour(spec.resources, prices)}"
    if spec.image is None:
        yield f"  image:   none, it is {_HERE}"
    else:
        environment = f"Modal environment {spec.modal_environment or 'of the profile'}"
        places = (spec.cloud or "", "/".join(spec.region), environment)
        yield f"  image:   {spec.image}"
        yield f"  where:   {', '.join(place for place in places if place)}"
    if spec.secrets:
        yield f"  secrets: {', '.join(spec.secrets)}"
    for mount in spec.volumes:
        yield f"  volume:  {mount}"
    if spec.block_network:
        yield "  network: none"
    if spec.outbound_cidrs or spec.outbound_domains:
        yield f"  network: {', '.join((*spec.outbound_cidrs, *spec.outbound_domains))} alone"
    if spec.tags:
        yield f"  tags:    {', '.join(f'{key}={value}' for key, value in spec.tags)}"
    if with_timeout:
        yield f"  timeout: {spec.timeout} s"


def _step(step: StepPlan) -> Iterator[str]:
    note = _of_step(step)
    yield f"  {step.name}: <bridge> {shlex.join(step.command)}" + (f"  ({note})" if note else "")
    yield from _extras(step.infrastructure_retries, step.concurrency_limit, "    ")


def _of_step(step: StepPlan) -> str:
    delays = ", ".join(f"{delay:g}" for delay in step.retry.delays)
    operator = f"the step operator {step.step_operator}" if isinstance(step.step_operator, str) else "a step operator"
    notes = [
        f"{_count(step.retry.retries, 'retry', 'retries')} after {delays} s" if delays else "",
        f"runs in {operator}" if step.step_operator else "",
        "" if step.caching else "never from the cache",
    ]
    return ", ".join(note for note in notes if note)


def _extras(infrastructure_retries: int, concurrency_limit: str | None, indent: str = "  ") -> Iterator[str]:
    if infrastructure_retries != _USUAL_RETRIES:
        yield f"{indent}fresh sandboxes for a lost one: {infrastructure_retries}"
    if concurrency_limit:
        yield f"{indent}holds a slot of the Prefect limit {concurrency_limit}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def as_text(lines: Iterable[str]) -> str:
    """The lines as one text, without a blank line at its end."""
    return "\n".join(lines).rstrip()

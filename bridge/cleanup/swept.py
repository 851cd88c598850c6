"""What a sweep found in a stack and did about it, as data and as text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from zenml.models import PipelineRunResponse

from bridge.cleanup.ownership import Judgement, Owner
from bridge.errors import BridgeError, CredentialsRefused, SandboxRefused
from bridge.runners.base import Sandbox
from bridge.zenml_side.zenml_away import couldnt_ask

_SHOWN = {Owner.NOBODY: "nobody's", Owner.UNCLEAR: "left alone", Owner.FLOW: "its flow's"}


@dataclass(frozen=True)
class Found:
    """A run that may be nobody's, with its sandboxes that are alive. ``run`` is None where ZenML has deleted it."""

    run_id: UUID
    name: str
    run: PipelineRunResponse | None
    flow_run: FlowRun | None
    judgement: Judgement
    sandboxes: tuple[tuple[Sandbox, str], ...] = ()
    """Each with its step, or ""."""


@dataclass
class Report:
    """What was found in a stack, and what was done."""

    stack: str
    found: list[Found] = field(default_factory=list)
    owned: str = "runs with a flow"
    """What is counted where somebody owns it."""
    ended: set[UUID] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    """What couldn't be asked or ended."""
    environments: set[str] = field(default_factory=set)
    """Of the Modal environments that somebody named: those that an account has."""
    missing: dict[str, str] = field(default_factory=dict)
    """Those that an account hasn't, each with what it says: which is a problem where none has it."""

    def of(self, owner: Owner) -> list[Found]:
        """The runs with that owner."""
        return [found for found in self.found if found.judgement.owner is owner]

    def lines(self) -> list[str]:
        """The report as text: what nobody owns, what is unclear, and how many are at work."""
        lines = []
        for found in (*self.of(Owner.NOBODY), *self.of(Owner.UNCLEAR)):
            done = "ended" if found.run_id in self.ended else _SHOWN[found.judgement.owner]
            lines.append(f"  run {found.name} ({found.run_id}): {done}: {found.judgement.why}")
            lines += [f"    sandbox {box.id}{f' of step {step}' if step else ''}" for box, step in found.sandboxes]
        owned = self.of(Owner.FLOW)
        boxes = sum(len(found.sandboxes) for found in owned)
        return [f"stack {self.stack}: {len(owned)} {self.owned}, {boxes} sandboxes in them", *lines]


@contextmanager
def noted(report: Report, what: str = "") -> Iterator[None]:
    """Note in the report that something couldn't be asked or done."""
    try:
        yield
    except BridgeError as error:
        report.problems.append(f"{what}{error}")
    except Exception as error:
        if not couldnt_ask(error):
            raise
        report.problems.append(f"{what}ZenML can't be reached: {type(error).__name__}: {error}")


@contextmanager
def named(report: Report, modal_environment: str) -> Iterator[None]:
    """Note in the report whether an account has a Modal environment that somebody named for all of them."""
    try:
        yield
    except CredentialsRefused:
        raise
    except SandboxRefused as error:
        report.missing[modal_environment] = str(error)
    else:
        report.environments.add(modal_environment)


def read_uuid(text: str | None) -> UUID | None:
    """Read an id that was written down as text, by whomever."""
    try:
        return UUID(text or "")
    except ValueError:
        return None

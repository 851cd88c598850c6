"""What ZenML's launcher of a step needs not ask for once more, since the step's process knows it. Imports ZenML."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from zenml.client import Client
from zenml.config.step_configurations import Step
from zenml.enums import ExecutionStatus
from zenml.execution.context import ExecutionContext, setup_execution_context
from zenml.logger import get_logger
from zenml.metadata.metadata_types import MetadataType
from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, StepRunResponse, TagResponse

from bridge import names
from bridge.flow_run.outcome import StepRecord
from bridge.host.attempt import Attempt
from bridge.host.passed_on import PassedOn, tell_end
from bridge.zenml_side import step_runs

M = TypeVar("M", bound=BaseModel)

logger = get_logger(__name__)

_snapshot: ContextVar[PipelineSnapshotResponse | None] = ContextVar("_snapshot", default=None)
_NOT_BEGUN = (ExecutionStatus.INITIALIZING, ExecutionStatus.PROVISIONING)


@contextmanager
def snapshot_is_loaded(snapshot: PipelineSnapshotResponse) -> Iterator[None]:
    """Within, :func:`loaded` returns this one."""
    token = _snapshot.set(snapshot)
    try:
        yield
    finally:
        _snapshot.reset(token)


def loaded(snapshot: PipelineSnapshotResponse) -> PipelineSnapshotResponse:
    """The same snapshot as this process has loaded it, else this one, which is loaded when it is asked."""
    known = _snapshot.get()
    return known if known is not None and known.id == snapshot.id else snapshot


@dataclass(frozen=True, slots=True)
class Fork:
    """What the fork of a step host knows: the run as its host has read it, and its attempt."""

    run: PipelineRunResponse
    attempt: Attempt


class KnownRun(PipelineRunResponse):
    """A run that was read a while ago: what may have changed since then is read anew when it is asked for.

    ZenML itself needs of it what doesn't change; a step's code may want the rest, as
    ``get_step_context().pipeline_run``.
    """

    @property
    def status(self) -> ExecutionStatus:
        """How the run is."""
        return self.get_hydrated_version().status

    @property
    def run_metadata(self) -> dict[str, MetadataType]:
        """Its metadata: steps may have added some."""
        return self.get_hydrated_version().run_metadata

    @property
    def tags(self) -> list[TagResponse]:
        """Its tags: steps may have added some."""
        return self.get_hydrated_version().tags

    def __eq__(self, other: object) -> bool:
        """Whether it is the same run."""
        return isinstance(other, PipelineRunResponse) and self.id == other.id

    def __hash__(self) -> int:
        """That of ZenML's own."""
        return hash((PipelineRunResponse, self.id))


@contextmanager
def begun_run(step: Step, fork: Fork | None) -> Iterator[None]:
    """Within, ZenML's launcher of ``step`` takes the run as it is, if a step of it has begun.

    It would find the same one, but lists the sandbox's Python packages before (``pip freeze``, half a second of
    processor time), for a run which doesn't know them yet: the first step tells them, as always.

    A fork knows the run, if it had begun, and the step runs that its step has its inputs from, as far as they were
    passed on by others of the same host. It passes on what it was told itself, and what ZenML answered to its end.
    """
    passed_on = PassedOn(fork.attempt.passed_on) if fork is not None and fork.attempt.passed_on is not None else None
    run = _known_run(fork, passed_on) or _current_run()
    with setup_execution_context(run) as context:
        if isinstance(context, ExecutionContext):  # else a variable of ZenML's forbids it
            context.step_runs = {}  # ZenML's own keeps a hundred: a step with more inputs would fail
            if passed_on is not None:
                context.step_runs.update(_inputs(step, passed_on))
        if passed_on is not None and run is not None:
            passed_on.keep(None, run.model_dump_json)
        yield
        if isinstance(context, ExecutionContext) and fork is not None and passed_on is not None:
            for name, known in context.step_runs.items():
                if known.status.is_successful:
                    passed_on.keep(name, known.model_dump_json)
            if (ended := context.step_runs.get(step.spec.invocation_id)) is not None:
                tell_end(fork.attempt.end_file, StepRecord(step_runs.reported(ended), str(ended.id), ended.version))


def _inputs(step: Step, passed_on: PassedOn) -> dict[str, StepRunResponse]:
    """The step runs that a step has its inputs from, as far as they were passed on."""
    names_of = {each.step_name for several in step.spec.normalized_inputs.values() for each in several}
    found = {name: _read(StepRunResponse, passed_on.of(name)) for name in names_of}
    return {name: step_run for name, step_run in found.items() if step_run is not None}


def _known_run(fork: Fork | None, passed_on: PassedOn | None) -> PipelineRunResponse | None:
    if fork is None:
        return None
    if fork.run.status not in _NOT_BEGUN:
        return KnownRun.model_validate(fork.run.model_dump())
    return _read(KnownRun, passed_on.of(None)) if passed_on is not None else None


def _current_run() -> PipelineRunResponse | None:
    run_id = os.environ.get(names.ENV_RUN_ID)
    run = Client().zen_store.get_run(UUID(run_id)) if run_id is not None else None
    return run if run is not None and run.status not in _NOT_BEGUN else None


def _read(model: type[M], told: bytes | None) -> M | None:
    try:
        return model.model_validate_json(told) if told is not None else None
    except ValidationError as error:
        logger.info("What another step passed on can't be read, so ZenML is asked: %s", error)
        return None

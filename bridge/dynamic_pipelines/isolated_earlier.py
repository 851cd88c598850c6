"""The isolated steps of a dynamic pipeline that an earlier process of its flow began. Imports ZenML.

What still runs asks for its sandbox as before (:mod:`bridge.dynamic_pipelines.asks`). What has ended meanwhile asks for
nothing any more, but nobody has told Prefect: its task run is open, and the rest of its output unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.schemas.objects import TaskRun
from zenml.client import Client

from bridge import names
from bridge.dynamic_pipelines.asks import Asked
from bridge.flow_run.outcome import Reported
from bridge.flow_run.run import Run
from bridge.zenml_side import step_runs


@dataclass
class EarlierSteps:
    """What there was when this process began."""

    newest: dict[tuple[UUID, str], UUID] = field(default_factory=dict)
    """By run and step: the task run of its newest step run that has one."""
    ended: list[Asked] = field(default_factory=list)
    """Step runs that have ended and whose task runs haven't, of each step the earlier attempts first."""


def earlier_steps(run: Run, task_runs: Mapping[UUID, TaskRun]) -> EarlierSteps:
    """Find them by the task runs of the flow run. Blocks; raises what ZenML's store raises."""
    found = EarlierSteps()
    for member, step_run in step_runs.every(run.run):
        task_run = task_runs.get(names.isolated_task_run_id(run.flow_run_id, str(step_run.id)))
        if task_run is None:
            continue
        found.newest[(member.id, step_run.name)] = task_run.id
        is_open = task_run.state is None or not task_run.state.is_final()
        if is_open and step_runs.reported(step_run) is not Reported.RUNNING:
            found.ended.append(Asked(member, Client().zen_store.get_run_step(step_run.id, hydrate=True)))
    return found

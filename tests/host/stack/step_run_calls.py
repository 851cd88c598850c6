"""``bridge.zenml_side.step_runs`` with arguments and answers that fit into JSON."""

from __future__ import annotations

from uuid import UUID

from zenml.client import Client
from zenml.stack import Stack

from bridge.flow_run.outcome import Diagnosis
from bridge.zenml_side import step_runs
from bridge.zenml_side.cache_lookup import CacheLookup


def _known(run: str):
    found = Client().get_pipeline_run(run)
    snapshot = Client().zen_store.get_snapshot(found.snapshot.id)
    return snapshot, found, Stack.from_model(snapshot.stack)


def latest(run: str, steps: list[str]) -> dict:
    found = step_runs.latest(_known(run)[1], steps)
    return {
        name: [record.reported.value, record.version, record.exception, record.step_run_id]
        for name, record in found.items()
    }


def overview(run: str, steps: list[str] | None) -> dict:
    return {seen.step: seen.status for seen in step_runs.overview(_known(run)[1], steps)}


def record_failure(run: str, step: str, what: str, was_read: bool = True) -> None:
    known = _known(run)[1]
    found = step_runs.latest(known, [step]) if was_read else {}
    step_runs.record_failure(known, step, found.get(step, step_runs.StepRecord()), Diagnosis(what))


def interrupted(step_run: str) -> None:
    """What ZenML's handler of signals makes a step report of itself."""
    from zenml.enums import ExecutionStatus
    from zenml.models import StepRunUpdate
    from zenml.models.v2.misc.exception_info import ExceptionInfo

    said = ExceptionInfo(
        traceback="Traceback: interrupted", source="m.Interrupted", message="interrupted", user_code_line=7
    )
    update = StepRunUpdate(status=ExecutionStatus.FAILED, exception_info=said)
    Client().zen_store.update_run_step(UUID(step_run), update)


def explain_failure(step_run: str, what: str) -> None:
    step_runs.explain_failure(UUID(step_run), Diagnosis(what))


def exception(step_run: str) -> list:
    said = Client().zen_store.get_run_step(UUID(step_run), hydrate=True).exception_info
    return [step_runs.message_of(said), said.traceback, said.user_code_line]


def record_stopped(step_run: str) -> None:
    step_runs.record_stopped(UUID(step_run))


def lose_its_place(step_run: str) -> None:
    """What a server writes down that gives a step's place in a resource pool to another one."""
    from sqlalchemy import text

    with Client().zen_store.engine.begin() as store:
        change = text("update step_run set status = 'cancelling' where id = :id")
        assert store.execute(change, {"id": UUID(step_run).hex}).rowcount == 1


def close_retries(run: str, step: str) -> None:
    step_runs.close_retries(_known(run)[1], step)


def stop_retrying(run: str, step: str) -> None:
    step_runs.stop_retrying(_known(run)[1], step)


def start(run: str, step: str) -> str:
    """A RUNNING step run that nobody runs, as a dead sandbox leaves it."""
    from zenml.enums import ExecutionStatus
    from zenml.models import StepRunRequest
    from zenml.utils.time_utils import utc_now

    found = Client().get_pipeline_run(run)
    request = StepRunRequest(
        name=step,
        pipeline_run_id=found.id,
        project=found.project_id,
        status=ExecutionStatus.RUNNING,
        start_time=utc_now(),
    )
    return str(Client().zen_store.create_run_step(request).id)


def complete(step_run: str) -> None:
    from zenml.orchestrators.publish_utils import publish_successful_step_run

    publish_successful_step_run(UUID(step_run), {})


def cache_answers(run: str, steps: list[str]) -> list:
    lookup = CacheLookup(*_known(run))
    answers = [lookup.answer(step) for step in steps]
    return [answer.value if answer else None for answer in answers]

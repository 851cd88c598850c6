"""When the orchestration of a dynamic pipeline goes on in another sandbox: each end with each status of the run."""

from __future__ import annotations

from itertools import product

import pytest
from zenml.constants import DYNAMIC_PIPELINE_RUN_FAILED_EXIT_CODE
from zenml.enums import ExecutionStatus

from bridge.dynamic_pipelines.dynamic import another_follows
from bridge.flow_run.outcome import TOKEN_REFUSED, End, SandboxEnd

OVER = {status for status in ExecutionStatus if status.is_finished} | {ExecutionStatus.PAUSED}
OWN_CODES = (0, 1, 2, 3, 7, DYNAMIC_PIPELINE_RUN_FAILED_EXIT_CODE, TOKEN_REFUSED, 126, 127, 128)
SIGNALS = (-9, -15, 137, 139, None)
FOLLOWED = {End.EVICTED, End.LOST, End.NEVER_STARTED, End.OUT_OF_MEMORY}


@pytest.mark.parametrize("status", sorted(ExecutionStatus))
@pytest.mark.parametrize("code", OWN_CODES)
def test_none_follows_one_that_ended_itself(code: int, status: ExecutionStatus) -> None:
    assert not another_follows(SandboxEnd(End.EXITED, code), status)


def test_zenmls_code_for_a_run_that_has_ended_is_what_the_program_exits_with() -> None:
    from bridge.host.dynamic import FAILED

    assert FAILED == DYNAMIC_PIPELINE_RUN_FAILED_EXIT_CODE == 45


@pytest.mark.parametrize(("code", "status"), list(product(SIGNALS, sorted(ExecutionStatus))))
def test_one_follows_a_signal(code: int | None, status: ExecutionStatus) -> None:
    assert another_follows(SandboxEnd(End.EXITED, code), status) is (status not in OVER)


@pytest.mark.parametrize(("end", "status"), list(product(sorted(set(End) - {End.EXITED}), sorted(ExecutionStatus))))
def test_every_other_end(end: End, status: ExecutionStatus) -> None:
    assert another_follows(SandboxEnd(end), status) is (end in FOLLOWED and status not in OVER)

"""Whoever reads along has gone: ``| head``, ``2>&1 | tee log`` where Ctrl-C ended `tee`, a terminal that was closed."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from tests.integration.lab import Lab
from tests.integration.under import Under


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"execution_mode": "per_step"}, id="warm"),
        pytest.param({"execution_mode": "per_step", "warm": False}, id="cold", marks=pytest.mark.slow),
        pytest.param({"execution_mode": "pipeline"}, id="pipeline", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_and_can_be_stopped_when_nobody_reads_any_more(
    lab: Lab, tmp_path: Path, settings: dict[str, object]
) -> None:
    under = Under(lab, tmp_path)
    reader, output = os.pipe()
    with under.script("stoppable.talking", "process", settings, output) as process:
        os.close(output)
        under.until_steps({"talks": "running"})
        os.close(reader)
        (tmp_path / "go-talk").touch()
        under.until_steps({"talks": "completed", "hangs": "running"}, 60)
        under.until_logged("can't be shown any more", level=logging.WARNING)
        process.send_signal(signal.SIGINT)
        assert under.all_dead()
        assert process.wait(60) != 0
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name) == ("stopped", "Cancelled"), ran.flow_run.state.message
    assert ran.steps == {"talks": "completed", "hangs": "stopped"}

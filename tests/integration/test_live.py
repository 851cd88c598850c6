"""A run in a real terminal: what is seen, and what Ctrl-C does."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab import PROJECT, STACK_CODE, Lab, eventually
from tests.integration.refusals import names_all
from tests.integration.under import Under, cancel

CTRL_C = b"\x03"
CONTROL = re.compile(rb"\x1b(\[[0-9;?]*[a-zA-Z]|\]8;[^\x1b]*\x1b\\)")


class Terminal:
    """A process in a terminal of its own, and what the terminal was told to show."""

    def __init__(self, *argv: str, folder: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        self.process = subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, "TERM": "xterm-256color", "PYTHONPATH": f"{STACK_CODE}:{PROJECT}"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._told = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the process has closed its side
                return
            self._told += data

    @property
    def text(self) -> str:
        """Everything so far, without colours and movements."""
        return CONTROL.sub(b"", self._told).decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._master)


def call_held(folder: Path) -> Path:
    script = folder / "script.py"
    script.write_text(
        "import os, stoppable\n"
        "from zenml.utils import source_utils\n"
        "source_utils.set_custom_source_root(os.getcwd())  # not this script's folder\n"
        "settings = {'orchestrator': {'execution_mode': 'per_step'}}\n"
        f"stoppable.held.with_options(settings=settings)({str(folder)!r})\n"
    )
    return script


def test_a_run_in_a_terminal(lab: Lab, tmp_path: Path) -> None:
    under = Under(lab, tmp_path)
    lab.activate(lab.stack("process"))
    shown = Terminal(sys.executable, str(call_held(tmp_path)), folder=PROJECT)
    try:
        under.until_steps({"hangs": "running", "again": "retrying"}, 200)
        row = re.compile(r"hangs +running +\d+ s +\d+ s +sb-")
        assert eventually(lambda: row.search(shown.text) and "waiting for its retry" in shown.text, bool, 20)
        names_all(
            shown.text,
            "0 of 3 steps",
            "again",
            "waiting for its retry",
            "later",
            "waiting for upstream",
            "Ctrl-C stops",
        )
        shown.type(CTRL_C)
        assert under.all_dead()
        code = shown.process.wait(60)
    except AssertionError:
        print(shown.text[-6000:])
        raise
    finally:
        shown.kill()
    ran = under.join()
    assert (ran.status, ran.flow_run.state.name, code != 0) == ("stopped", "Cancelled", True), shown.text[-4000:]
    names_all(shown.text, "Interrupted: the run is being stopped", "RunStopped: The run was stopped")
    last = shown.text[shown.text.rindex("of 3 steps") :]
    names_all(last, "Cancelled", "NotRun")
    assert "still executing" not in shown.text
    assert "HTTP Request" not in shown.text
    kept = kept_of_client(ran.run)
    names_all(kept, "again | ", "Interrupted: the run is being stopped")
    assert "of 3 steps" not in kept, "the picture isn't kept with each line"


def kept_of_client(run: Any) -> str:
    """What ZenML keeps of what the submitting process said, in the stack's artifact store."""
    (logs,) = [logs for logs in run.log_collection if logs.source == "client"]
    return Path(logs.uri).read_text()


def until_shown(shown: Terminal, *expected: str, seconds: float = 60) -> None:
    def missing() -> list[str]:
        return [words for words in expected if not re.search(words, shown.text)]

    assert not eventually(missing, lambda found: not found, seconds), shown.text[-6000:]


@pytest.mark.slow  # test_ui.py reads the table back, and tests/unit/test_live.py draws such a run
def test_a_run_through_a_worker_in_a_terminal(lab: Lab, pool: str, tmp_path: Path) -> None:
    under = Under(lab, tmp_path)
    lab.activate(lab.stack("process", work_pool=pool))
    script = str(call_held(tmp_path))
    shown = Terminal(sys.executable, script, folder=PROJECT)
    try:
        under.until_steps({"hangs": "running", "again": "retrying"}, 200)
        until_shown(
            shown,
            r"hangs +running +\d+ s +\d+ s +sb-",
            r"again +waiting for its retry",
            r"later +waiting for upstream",
            r"0 of 3 steps, .*Prefect",
            "Flow run .*: Running",
            "Ctrl-C stops waiting; the run goes on",
        )
        shown.type(CTRL_C)
        until_shown(
            shown, f"The run goes on without this process. To stop it: `zenml pipeline runs stop {under.run_id}`"
        )
        assert shown.process.wait(60) != 0
        assert not under.all_dead(0)
    finally:
        shown.kill()
        cancel(under.flow_run_id)
    assert under.all_dead(60)
    assert under.join().status == "stopped"


@pytest.mark.slow  # the same
def test_a_run_through_a_worker_without_a_terminal(lab: Lab, pool: str, tmp_path: Path) -> None:
    under = Under(lab, tmp_path)
    with under.script("stoppable.held", "process", {"execution_mode": "per_step"}, work_pool=pool) as process:
        under.until_steps({"hangs": "running", "again": "retrying"}, 200)
        log = tmp_path / "script.log"
        lines = ("Step hangs: running", "Step again: waiting for its retry")
        assert eventually(lambda: all(line in log.read_text() for line in lines), bool, 60), log.read_text()
        cancel(under.flow_run_id)
        assert process.wait(60) != 0
    said = log.read_text()
    names_all(said, "Step hangs: Cancelled", "Step later: NotRun: upstream hangs", "RunStopped")
    assert "waiting for upstream" not in said
    assert "of 3 steps" not in said
    assert "/api/artifacts/" not in (lab.folder / "worker" / "worker.log").read_text(), "each request is told"

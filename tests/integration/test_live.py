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

from tests.integration.lab import PROJECT, STACK_CODE, Lab, eventually
from tests.integration.refusals import names_all
from tests.integration.under import Under

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


def test_a_run_in_a_terminal(lab: Lab, tmp_path: Path) -> None:
    under = Under(lab, tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        "import stoppable\n"
        "settings = {'orchestrator': {'execution_mode': 'per_step'}}\n"
        f"stoppable.held.with_options(settings=settings)({str(tmp_path)!r})\n"
    )
    lab.activate(lab.stack("process"))
    shown = Terminal(sys.executable, str(script), folder=PROJECT)
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

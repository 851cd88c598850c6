"""What is written to a terminal, here one of the test's own, of a run that a worker carries out."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import sys
import termios

import pytest

from bridge.watching import terminal
from bridge.watching.board import Board
from tests.unit.test_live import planned


def test_who_waits_in_a_terminal_sees_the_steps_and_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = logging.getLogger("bridge")
    before = list(ours.handlers), ours.propagate
    board = Board(planned(("load", ())))
    board.in_sandbox("load", "sb-1", None)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", os.fdopen(slave, "w"))
    with terminal.show_waiting("digits-1"):
        assert terminal.watch(board, "digits-1", lambda: {"Prefect": "http://127.0.0.1/run"})
        logging.getLogger("bridge.submitting.waiting").warning("Nobody is at work")
        shown = ""
        while "Ctrl-C stops waiting; the run goes on" not in shown:  # it is drawn a few times a second
            shown += os.read(master, 65536).decode(errors="replace")
    sys.stderr.close()
    os.close(master)
    for words in ("| digits-1 | Nobody is at work", "0 of 1 steps", "sb-1", ";http://127.0.0.1/run"):
        assert words in shown
    assert (list(ours.handlers), ours.propagate) == before
    assert not terminal.watch(board, "digits-1", dict)


def test_without_a_terminal_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.show_waiting("digits-1"):
        assert not terminal.watch(Board(planned(("load", ()))), "digits-1", dict)
    assert capsys.readouterr() == ("", "")

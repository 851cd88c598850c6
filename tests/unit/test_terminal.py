"""What is written to a terminal, here one of the test's own, and to one that nobody reads any more."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator

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


def test_a_log_in_forced_colours_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many set it for their CI: the lines of steps come, and no picture."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    board = Board(planned(("load", ())))
    with terminal.show_waiting("digits-1"):
        assert not terminal.watch(board, "digits-1", dict)
    with terminal.show_run():
        assert not terminal.watch(board, "digits-1", dict)
        terminal.echo("load", "its output")
    said = capsys.readouterr().err
    assert said.endswith(" | load | its output\n")
    assert len(said.splitlines()) == 1
    assert "\x1b" not in said


@contextlib.contextmanager
def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Stderr is a terminal; yields the side of who reads it, which may be closed meanwhile."""
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    with open(slave, "w", buffering=1) as shown, open(os.devnull, "w") as anywhere:
        monkeypatch.setattr(sys, "stderr", shown)
        yield master
        os.dup2(anywhere.fileno(), slave)  # else closing it fails, for what it couldn't write


@contextlib.contextmanager
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stderr, when who read it has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as nobody, open(os.devnull, "w") as anywhere:
        monkeypatch.setattr(sys, "stderr", nobody)
        yield
        os.dup2(anywhere.fileno(), writer)  # else closing it fails, for what it couldn't write


@pytest.mark.parametrize("drawn", [False, True])
def test_nothing_fails_for_what_nobody_reads(
    drawn: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = logging.getLogger("prefect.flow_runs")
    threads: list[object] = []
    monkeypatch.setattr(threading, "excepthook", threads.append)
    with a_terminal(monkeypatch) if drawn else unread(monkeypatch) as master, terminal.show_run():
        if master is not None:
            os.close(master)
        assert terminal.watch(Board(planned(("load", ()))), "digits-1", dict) is drawn
        for number in range(3):
            terminal.echo("load", f"line {number}")
        run.warning("its own logger")
        terminal.interrupted("digits-1", 600)
    said = [record.getMessage() for record in caplog.records if record.name == "bridge.watching.terminal"]
    assert len(said) == 1, "it is told, and once"
    assert ("OSError" if drawn else "BrokenPipeError") in said[0]
    assert not threads


def test_what_looks_like_a_colour_and_is_none_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """``rich`` takes the number apart, which Python refuses to."""
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", os.fdopen(slave, "w"))
    with terminal.show_run():
        terminal.watch(Board(planned(("load", ()))), "digits-1", dict)
        terminal.echo("load", "before \x1b[" + "1" * 5000 + "m and after")
        shown = ""
        while "and after" not in shown:
            shown += os.read(master, 65536).decode(errors="replace")
    sys.stderr.close()
    os.close(master)
    assert "before" in shown


def test_links_that_can_not_be_asked_for_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unasked() -> dict[str, str | None]:
        raise ConnectionError("ZenML is away")

    with a_terminal(monkeypatch) as master, terminal.show_run():
        assert terminal.watch(Board(planned(("load", ()))), "digits-1", unasked)
    os.close(master)
    assert "ZenML is away" in caplog.text

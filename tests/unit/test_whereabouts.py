"""A process is told from another one that has its id."""

from __future__ import annotations

import subprocess
import sys

from bridge.flow_run import whereabouts

TELL = """
import sys
from bridge.flow_run import whereabouts
print(whereabouts.of_this_process(), flush=True)
sys.stdin.read()
"""


def test_a_process_and_its_end() -> None:
    """A SIGKILL is seen at once, also while the process only waits to be reaped."""
    with subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        known = process.stdout.readline().strip()
        assert whereabouts.is_there(known) is True
        process.kill()
        process.stdout.read()  # its end
        while whereabouts.is_there(known):
            pass
        assert process.returncode is None, "nobody has reaped it yet"
    assert whereabouts.is_there(known) is False


def test_an_id_that_was_used_again() -> None:
    machine, pid, started = whereabouts.of_this_process().rsplit("/", 2)
    assert whereabouts.is_there(f"{machine}/{pid}/{started}") is True
    assert whereabouts.is_there(f"{machine}/{pid}/{started}1") is False


def test_another_machine_can_not_be_judged() -> None:
    _, pid, started = whereabouts.of_this_process().rsplit("/", 2)
    assert whereabouts.is_there(f"elsewhere~00000000/{pid}/{started}") is None

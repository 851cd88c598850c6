"""A process is told from another one that has its id."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


def test_a_container_with_the_name_of_its_host_can_not_be_judged() -> None:
    """It has the host's network, and with it its name, as in a pod with ``hostNetwork``; its processes are its own."""
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        subprocess.run([*apart, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine makes no namespaces for its users: {error}")
    with subprocess.Popen(
        [*apart, sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        known = process.stdout.readline().strip()
        name, here = known.partition("~")[0], whereabouts.of_this_process().partition("~")[0]
        assert name == here
        assert whereabouts.is_there(known) is None
        assert process.stdin is not None
        process.stdin.close()
    assert whereabouts.is_there(known) is None
